"""What stands in place of the host's linear layers, or watches them, is called in both layouts: adapters, subclasses, hooks."""

import copy

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch import nn
from torch.testing import assert_close
from transformers.models.vit.modeling_vit import ViTMLP, ViTPatchEmbeddings

from hf_dynvit.model.prepack import can_prepack


prepacked = pytest.param(True, marks=pytest.mark.skipif(not can_prepack(), reason="this torch has no oneDNN"))


@pytest.fixture(autouse=True)
def worth_it_at_any_size(monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)


class Adapter(nn.Module):
    """A linear layer plus a product of two small ones; shows the weight of the layer, as peft's does."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.5)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)
    out_features = property(lambda self: self.base_layer.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))

    def merged(self):
        self.base_layer.weight.data += self.up.weight.data @ self.down.weight.data  # raises no version
        return self.base_layer


def adapted(model, names=("q_proj", "v_proj")):
    for layer in model.vit.layers:
        for name in names:
            host = layer.mlp if name.startswith("fc") else layer.attention
            setattr(host, name, Adapter(getattr(host, name)))
    return model


def merge_adapters(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Adapter):
                setattr(module, name, child.merged())
    return model


def tolerance(dtype, like):
    return 1e-4 if dtype == torch.float32 else 0.05 * like.abs().max().item()


def assert_packed_is_masked(model, dtype, without):
    """Both layouts agree, and are not those of the model `without` the adapter."""
    pixels = images(3).to(dtype)
    masked = run(model, "masked", pixels).logits
    packed = run(model, "packed", pixels).logits
    difference = (masked - run(without, "masked", pixels).logits).abs().max().item()
    assert difference > 0.02
    assert_close(packed, masked, atol=1e-4 if dtype == torch.float32 else difference / 3, rtol=0)


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("k_proj",), ("o_proj",), ("fc1",), ("fc2",)])
@pytest.mark.parametrize("prepack", [False, prepacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_counts_before_and_after_it_is_merged(tiny_vit, dtype, prepack, names):
    plain = gated(tiny_vit(), None)
    model = adapted(copy.deepcopy(plain), names)
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if "down" in n or "up" in n], lr=0.05)
    model.train()(images(4), labels=torch.arange(4)).loss.backward()
    optimizer.step()
    model, plain = model.eval().to(dtype), plain.to(dtype)
    if prepack:
        model.prepack()
    assert_packed_is_masked(model, dtype, plain)
    pixels = images(3).to(dtype)
    expected = run(model, "masked", pixels).logits
    assert_packed_is_masked(merge_adapters(model), dtype, plain)
    merged = run(model, "packed", pixels).logits
    assert_close(merged, expected, atol=2 * tolerance(dtype, expected), rtol=0)


@pytest.mark.parametrize("prepack", [False, prepacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_lora_of_peft_counts_before_and_after_it_is_merged(tiny_vit, dtype, prepack):
    peft = pytest.importorskip("peft")
    plain = gated(tiny_vit(), GATE_SETS["head"])
    model = copy.deepcopy(plain)
    if prepack:
        model.prepack()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    wrapped.train()(pixel_values=images(4), labels=torch.arange(4)).loss.backward()
    optimizer.step()
    model, plain = model.eval().to(dtype), plain.to(dtype)
    assert_packed_is_masked(model, dtype, plain)
    unmerged = copy.deepcopy(model)
    wrapped.merge_adapter()  # in place, behind the version of the weight
    assert_packed_is_masked(model, dtype, plain)
    wrapped.unmerge_adapter()
    assert_packed_is_masked(wrapped.merge_and_unload(), dtype, plain)
    pixels = images(3).to(dtype)
    expected = run(unmerged, "masked", pixels).logits
    assert_close(run(model, "packed", pixels).logits, expected, atol=2 * tolerance(dtype, expected), rtol=0)


class Doubled(ViTMLP):
    """An MLP of another kind."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class Bottleneck(nn.Module):
    """An MLP without any of the names of the host's."""

    def __init__(self, width):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))

    def forward(self, hidden_states):
        return self.inside(hidden_states)


def doubled(mlp):
    mlp.__class__ = Doubled
    return mlp


def other_activation(mlp):
    mlp.activation_fn = nn.Tanh()
    return mlp


@pytest.mark.parametrize("change", [doubled, lambda mlp: Bottleneck(32), other_activation])
@pytest.mark.parametrize("prepack", [False, prepacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_mlp_is_called(tiny_vit, dtype, prepack, change):
    plain = gated(tiny_vit(), None).to(dtype)
    model = copy.deepcopy(plain)
    for layer in model.vit.layers:
        layer.mlp = change(layer.mlp)
    model.to(dtype)
    if prepack:
        model.prepack()
    assert_packed_is_masked(model, dtype, plain)


class Shifted(ViTPatchEmbeddings):
    """Embeddings of another kind."""

    def forward(self, pixel_values):
        return 3 * super().forward(pixel_values)


def test_other_patch_embeddings_are_called(tiny_vit):
    plain = gated(tiny_vit(), None).bfloat16()
    model = copy.deepcopy(plain)
    model.vit.embeddings.patch_embeddings.__class__ = Shifted
    assert_packed_is_masked(model, torch.bfloat16, plain)


@pytest.mark.parametrize("kind", ["forward", "pre", "replaced"])
@pytest.mark.parametrize("prepack", [False, prepacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_hooks_on_the_hosts_modules_fire(tiny_vit, layout, dtype, prepack, kind):
    model = gated(tiny_vit(), None).to(dtype)
    if prepack:
        model.prepack()
    pixels = images(3).to(dtype)
    expected, seen = run(model, layout, pixels).logits, []
    embeddings, layer = model.vit.embeddings, model.vit.layers[0]
    attention, mlp = layer.attention, layer.mlp
    watched = {
        "embeddings": embeddings,
        "patches": embeddings.patch_embeddings,
        "convolution": embeddings.patch_embeddings.projection,
        **{name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{"mlp": mlp, "fc1": mlp.fc1, "activation": mlp.activation_fn, "fc2": mlp.fc2},
        **{name: getattr(layer, name) for name in ("layernorm_before", "layernorm_after", "dropout")},
    }
    for name, module in watched.items():
        if kind == "forward":
            module.register_forward_hook(lambda module, args, out, name=name: seen.append(name))
        elif kind == "pre":
            module.register_forward_pre_hook(lambda module, args, name=name: seen.append(name))
        else:  # as accelerate does

            def forward(*args, name=name, original=module.forward, **kwargs):
                seen.append(name)
                return original(*args, **kwargs)

            module.forward = forward
    logits = run(model, layout, pixels).logits
    assert set(seen) == set(watched)
    assert all(seen.count(name) == 1 for name in watched if name != "dropout")
    assert_close(logits, expected, atol=tolerance(dtype, expected), rtol=0)


@pytest.mark.parametrize("prepack", [False, prepacked])
def test_parametrized_weights_count(tiny_vit, prepack):
    class Negated(nn.Module):
        def forward(self, weight):
            return -weight

    plain = gated(tiny_vit(), None).bfloat16()
    model = copy.deepcopy(plain)
    if prepack:
        model.prepack()
    nn.utils.parametrize.register_parametrization(model.vit.layers[0].attention.k_proj, "weight", Negated())
    assert_packed_is_masked(model, torch.bfloat16, plain)
