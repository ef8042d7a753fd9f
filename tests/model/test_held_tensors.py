"""A forward writes into no tensor that others may hold, and layers that run whole are called, so that hooks on them fire."""

import copy

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch.testing import assert_close
from transformers.models.vit.modeling_vit import ViTLayer

from hf_dynvit import LayerDecisions
from hf_dynvit.model.prepack import can_prepack


def tensors(value):
    if torch.is_tensor(value):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in values for tensor in tensors(part)]


def held_by_hooks(model):
    """(module's name, tensor, what it was) of all that goes in and out of all modules, as the forwards add to it."""
    held = []

    def hook(name):
        def take(module, args, kwargs, out):
            held.extend((name, tensor, tensor.clone()) for tensor in tensors((args, kwargs, out)))

        return take

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name), with_kwargs=True)
    return held


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("name", [*GATE_SETS, None])
def test_what_hooks_hold_stays_as_it_was(tiny_vit, name, layout):
    model = gated(tiny_vit(3), name and GATE_SETS[name])
    held = held_by_hooks(model)
    pixels = images(4)
    given = pixels.clone()
    run(model, layout, pixels)
    run(model, layout, pixels, patches=torch.arange(9), merge_patches=True)
    run(model, layout, pixels, gating="act")
    assert torch.equal(pixels, given)
    assert "vit.embeddings" in {name for name, *_ in held}
    assert name is None or any(".score" in name or name.startswith("gates.") for name, *_ in held)
    for where, tensor, was in held:
        assert torch.equal(tensor, was), where


@pytest.mark.parametrize("name", [*GATE_SETS, None])
def test_embeddings_stay_where_nothing_else_is_watched(tiny_vit, name):
    model = gated(tiny_vit(3), name and GATE_SETS[name])
    held = []
    model.vit.embeddings.dropout.register_forward_hook(lambda module, args, out: held.append((out, out.clone())))
    for dtype in (torch.float32, torch.bfloat16):
        run(model.to(dtype), "packed", images(4).to(dtype))
    assert len(held) == 2
    for tensor, was in held:
        assert torch.equal(tensor, was)


@pytest.mark.parametrize("name", GATE_SETS)
def test_hidden_states_are_those_of_the_masked_layout(tiny_vit, name):
    model = gated(tiny_vit(3), GATE_SETS[name])
    pixels = images(4)
    found = {layout: run(model, layout, pixels, output_hidden_states=True) for layout in ("packed", "masked")}
    alive = torch.ones(4, 17, dtype=torch.bool)
    for index, (packed, masked) in enumerate(zip(*(out.hidden_states for out in found.values()), strict=True)):
        if index and any(gate.drop for gate in model.gates[index - 1].values()):
            alive = found["masked"].decisions[index - 1].attention_tokens
        assert_close(packed[alive], masked[alive], atol=1e-4, rtol=0)


class Loud(ViTLayer):
    """A layer of somebody's own."""

    def forward(self, hidden_states, *args, **kwargs):
        return 1.5 * super().forward(hidden_states, *args, **kwargs)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("prepack", [False, True])
def test_hooks_fire_on_layers_that_no_gate_decides_about(tiny_vit, layout, prepack):
    if prepack and not can_prepack():
        pytest.skip("this torch has no oneDNN")
    vit = tiny_vit(3)
    model = gated(vit, [{"gate": "head", "layers": [1]}])
    if prepack:
        model.prepack()
    pixels, calls = images(3), {}
    expected = run(model, layout, pixels)
    hidden = run(model, layout, pixels, output_hidden_states=True).hidden_states
    for index, layer in enumerate(model.vit.layers):
        layer.register_forward_pre_hook(lambda module, args, index=index: calls.update({f"in {index}": args[0]}))
        layer.register_forward_hook(lambda module, args, out, index=index: calls.update({f"out {index}": out}))
        layer.attention.register_forward_hook(lambda *_, index=index: calls.update({f"attention {index}": None}))
    out = run(model, layout, pixels)
    assert set(calls) == {f"{what} {index}" for what in ("in", "out", "attention") for index in (0, 2)}
    assert_close(out.logits, expected.logits, rtol=0, atol=1e-5)
    assert torch.equal(out.cost, expected.cost)
    for index in (0, 2):
        assert_close(calls[f"in {index}"], hidden[index], rtol=0, atol=1e-5)
        assert_close(calls[f"out {index}"], hidden[index + 1], rtol=0, atol=1e-5)
    for options in ({"gating": "open"}, {"decisions": [LayerDecisions()] * 3, "gating": "open"}):
        calls.clear()
        logits = run(model, layout, pixels, **options).logits
        assert len(calls) == 9
        with torch.no_grad():
            assert_close(logits, vit(pixels).logits, rtol=0, atol=1e-5)


class Wrapped(torch.nn.Module):
    """A layer inside something else."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, *args, **kwargs):
        return self.layer(hidden_states, *args, **kwargs) + 1 / (1 + hidden_states.square())


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_hook_may_change_what_a_layer_gives(tiny_vit, layout):
    vit = tiny_vit(3)
    model, pixels = gated(vit, None), images(3)
    for host in (vit, model):
        host.vit.layers[1].register_forward_hook(lambda module, args, out: out * 0.5)
        host.vit.layers[2].__class__ = Loud
        host.vit.layers[0] = Wrapped(host.vit.layers[0])
    with torch.no_grad():
        expected = vit(pixels).logits
    assert_close(run(model, layout, pixels).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_with_hooks_train_and_give_their_attention(tiny_vit, checkpointing):
    vit = tiny_vit(2)
    vit.set_attn_implementation("eager")
    model, pixels, labels = gated(vit, None), images(3), torch.arange(3)
    twin = copy.deepcopy(model)
    calls = []
    for layer in twin.vit.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    attentions = [run(each, "masked", pixels, output_attentions=True).attentions for each in (model, twin)]
    assert_close(*attentions)
    if checkpointing:
        twin.activation_checkpointing_enable()
    gradients = []
    calls.clear()
    for each in (model, twin):
        each.layout = None
        each.train()(pixels, labels=labels).loss.backward()
        gradients.append([p.grad for p in each.parameters()])
    assert_close(*gradients)
    assert len(calls) == (4 if checkpointing else 2)  # once more in the backward pass, and no third time
