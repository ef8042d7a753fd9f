"""A backbone of another family needs a host and nothing else: here one with names, tokens and positions unlike a ViT's."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import images, run
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, ViTConfig
from transformers.models.vit.modeling_vit import eager_attention_forward

import hf_dynvit.model
from hf_dynvit import DynViTConfig, DynViTForImageClassification
from hf_dynvit.model.cost import dense_macs
from hf_dynvit.model.gate import Score
from hf_dynvit.model.host import HOSTS, Host, LayerParts, Sizes, host_of, register_host


PREFIX = 2  # [CLS] and a register


class ToyConfig(ViTConfig):
    model_type = "toy"


def turn(q, k, angles):
    """Rotary positions: q, k (..., H, d), angles (..., d / 2)."""
    sin, cos = (function(angles).unsqueeze(-2) for function in (torch.sin, torch.cos))

    def turned(t):
        a, b = t.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    return turned(q), turned(k)


class ToyAttention(nn.Module):
    is_causal = False

    def __init__(self, config):
        super().__init__()
        self.config, self.head_dim = config, config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, angles):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        q, k, v = (t.transpose(1, 2) for t in (*turn(q, k, angles), v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ToyMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate, self.up = (nn.Linear(config.hidden_size, config.intermediate_size) for _ in range(2))
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ToyScale(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.full((config.hidden_size,), 0.7))

    def forward(self, x):
        return x * self.weight


class ToyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.scale1, self.scale2 = ToyScale(config), ToyScale(config)
        self.attn, self.ffn = ToyAttention(config), ToyMLP(config)

    def forward(self, x, angles):
        x = x + self.scale1(self.attn(self.norm1(x), angles))
        return x + self.scale2(self.ffn(self.norm2(x)))


class ToyBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(1, PREFIX, config.hidden_size))
        size = config.patch_size
        self.stem = nn.Conv2d(config.num_channels, config.hidden_size, size, stride=size)
        self.blocks = nn.ModuleList(ToyLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.angles = config.hidden_size // config.num_attention_heads // 2

    def tokens(self, pixel_values):
        patches = self.stem(pixel_values).flatten(2).transpose(1, 2)
        batch, count = patches.shape[:2]
        angles = torch.outer(torch.arange(1.0, count + 1), torch.arange(1.0, self.angles + 1)) / self.angles
        angles = F.pad(angles, (0, 0, PREFIX, 0)).expand(batch, -1, -1)
        return torch.cat((self.prefix.expand(batch, -1, -1), patches), 1), angles


class ToyForImageClassification(PreTrainedModel):
    config_class, config, base_model_prefix = ToyConfig, ToyConfig, "toy"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.toy, self.classifier = ToyBackbone(config), nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        x, angles = self.toy.tokens(pixel_values)
        for layer in self.toy.blocks:
            x = layer(x, angles)
        return SimpleNamespace(logits=self.classifier(self.toy.norm(x)[:, PREFIX:].mean(1)))


class ToyHost(Host):
    native, protected = ToyForImageClassification, (0, 1)

    def build(self, config):
        return ToyBackbone(config)

    def layers(self, backbone):
        return backbone.blocks

    def parts(self, layer):
        attention, mlp = layer.attn, layer.ffn
        return LayerParts(
            attention_norm=layer.norm1,
            mlp_norm=layer.norm2,
            attention=attention,
            projections=(attention.qkv,),
            head_dim=attention.head_dim,
            out=attention.proj,
            mlp=mlp,
            mlp_linears=(mlp.gate, mlp.up, mlp.down),
            activation=None,
            residuals=(layer.scale1, layer.scale2),
            dropout=0.0,
            eager=eager_attention_forward,
            turn=turn,
        )

    def is_own(self, layer):
        return not layer._forward_hooks

    def call(self, layer, x, side):
        return layer(x, side)

    def embed(self, backbone, pixel_values, interpolate):
        return backbone.tokens(pixel_values)

    def norm(self, backbone, x):
        return backbone.norm(x)

    def head(self, backbone, x, alive, size):
        weight = torch.ones(x.shape[:2]) if size is None else size
        weight = (weight if alive is None else weight * alive)[:, PREFIX:, None]
        return (backbone.norm(x)[:, PREFIX:] * weight).sum(1) / weight.sum(1).clamp(min=1)

    def sizes(self, config):
        width, patch = config.hidden_size, config.patch_size
        return Sizes(
            tokens=PREFIX + (config.image_size // patch) ** 2,
            protected=PREFIX,
            heads=config.num_attention_heads,
            width=width,
            attention=width,
            attention_weights=4 * width * width,
            mlp_weights=3 * width * config.intermediate_size,
            patch_weights=patch**2 * config.num_channels * width,
            features=width,
        )


class DynToyConfig(DynViTConfig):
    model_type, host = "dyntoy", "toy"


class DynToyForImageClassification(DynViTForImageClassification):
    config_class, base_model_prefix = DynToyConfig, "toy"


@pytest.fixture(autouse=True)
def toy_host(monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.host.HOSTS", dict(HOSTS))
    register_host("toy", ToyHost())


@pytest.fixture
def toy():
    config = ToyConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        num_labels=5,
        initializer_range=0.2,
    )
    return ToyForImageClassification(config).eval()


def gated_toy(toy, gates):
    model = DynToyForImageClassification.from_vit(toy, gates)
    for module in model.modules():
        if isinstance(module, Score):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return model


GATES = {
    "patch": [{"gate": "patch"}],
    "patch on mlp": [{"gate": "patch", "on": "mlp"}],
    "head": [{"gate": "head"}],
    "sublayer": [{"gate": "sublayer"}],
    "block upfront": [{"gate": "block", "upfront": True, "pool": "mean"}],
    "random": [{"gate": "random"}],
    "dropped": [{"gate": "patch", "drop": True}],
    "merged": [{"gate": "patch", "drop": True, "merge": True, "novelty": 4.0}],
    "merge": [{"gate": "merge"}],
    "all": [{"gate": "patch", "drop": True, "merge": True}, {"gate": "head"}, {"gate": "sublayer"}],
}


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("gates", [None, GATES["all"]])
def test_fresh_gates_leave_the_logits_of_the_native_model(toy, gates, layout):
    model, pixel_values = DynToyForImageClassification.from_vit(toy, gates), images(3)
    assert_close(run(model, layout, pixel_values).logits, toy(pixel_values).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", GATES)
def test_both_layouts_agree(toy, name, batch):
    model, pixel_values = gated_toy(toy, GATES[name]), images(batch)
    masked, packed = (run(model, layout, pixel_values) for layout in ("masked", "packed"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)
    assert (masked.cost < 1).any() and (
        masked.logits - run(model, "masked", pixel_values * -1).logits
    ).abs().max() > 1e-3


@pytest.mark.usefixtures("counted_attention")
@pytest.mark.parametrize("name", [None, "patch", "patch on mlp", "head", "sublayer", "block upfront", "random"])
def test_the_cost_is_what_runs(toy, name):
    model = gated_toy(toy, GATES.get(name))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(images(3))
    dense = dense_macs(model.config, model.num_tokens, 5)
    assert counter.get_total_flops() / 2 == sum(round(float(spent) * dense) for spent in out.cost)
    assert name or out.cost.tolist() == [1.0] * 3


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_protected_tokens_stay_whatever_the_gates_say(toy, layout):
    model = gated_toy(toy, GATES["merged"])
    for gate in model.learned_gates():
        nn.init.constant_(gate.score.bias, -1e4)
    first, *_, last = run(model, layout, images(3)).decisions
    assert first.attention_tokens.sum(1).tolist() == last.attention_tokens.sum(1).tolist() == [PREFIX] * 3
    assert first.attention_tokens[:, :PREFIX].all()


@pytest.mark.parametrize("merge", [False, True])
def test_chosen_patches_keep_what_belongs_to_them(toy, merge):
    model, pixel_values, patches = (
        gated_toy(toy, GATES["merged"]),
        images(2),
        torch.tensor([[9, 3, 4, 0], [1, 2, 8, 5]]),
    )
    masked, packed = (
        run(model, layout, pixel_values, patches=patches, merge_patches=merge) for layout in ("masked", "packed")
    )
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    model = DynToyForImageClassification.from_vit(toy)
    shuffled = run(model, "packed", pixel_values, patches=torch.randperm(16))  # positions come along
    assert_close(shuffled.logits, toy(pixel_values).logits, rtol=0, atol=1e-5)


def test_protected_tokens_may_stand_anywhere(toy, monkeypatch):
    monkeypatch.setattr(ToyHost, "protected", (0, 5))
    model, pixel_values = gated_toy(toy, GATES["merged"]), images(3)
    masked, packed = (run(model, layout, pixel_values) for layout in ("masked", "packed"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert all(decision.attention_tokens[:, [0, 5]].all() for decision in packed.decisions)
    assert not packed.decisions[-1].attention_tokens.all()
    with pytest.raises(ValueError, match=r"protected tokens come first, not at \(0, 5\)"):
        model(pixel_values, patches=torch.arange(4))


def test_a_layer_that_runs_whole_is_called_if_somebody_watches(toy):
    model, pixel_values, seen = DynToyForImageClassification.from_vit(toy), images(2), []
    model.toy.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    assert_close(run(model, "packed", pixel_values).logits, toy(pixel_values).logits, rtol=0, atol=1e-5)
    assert seen == [1]


def test_prepacked_weights_and_saved_models_work(toy, tmp_path):
    model, pixel_values = gated_toy(toy, GATES["merged"]), images(2)
    expected = run(model, "packed", pixel_values).logits
    model.save_pretrained(tmp_path)
    loaded = DynToyForImageClassification.from_pretrained(tmp_path)
    assert_close(run(loaded, "packed", pixel_values).logits, expected)
    if torch.backends.mkldnn.is_available():
        assert_close(run(loaded.prepack(), "packed", pixel_values).logits, expected, rtol=0, atol=1e-4)


def test_a_family_without_a_host_is_refused_by_name():
    with pytest.raises(ValueError, match="no host for 'resnet'; there are .*'vit'.*register_host"):
        host_of(SimpleNamespace(model_type="resnet"))


NAMES = r"layernorm_(before|after)|\b[qkvo]_proj\b|\bfc[12]\b|ViT(Layer|Attention|MLP|Embeddings)\b|modeling_vit|_embeddings\."


def test_no_other_file_of_the_model_knows_vit_by_name():
    (folder,) = hf_dynvit.model.__path__
    files = {path.stem: re.findall(NAMES, path.read_text()) for path in Path(folder).glob("*.py")}
    assert {name for name, found in files.items() if found} == {"host_vit"}
