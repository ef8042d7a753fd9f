"""Masking is the meaning, packing is the speed: the two layouts agree, and both say what a decision means."""

import pytest
import torch
from models import EXTREMES, GATE_SETS, LEARNED_SETS, extreme_decisions, gated, images, random_decisions, run
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification, LayerDecisions


LAYERS = 3
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def assert_layouts_agree(model, pixel_values, **options):
    masked = run(model, "masked", pixel_values, **options)
    packed = run(model, "packed", pixel_values, **options)
    assert_close(packed.logits, masked.logits, **TOLERANCE)
    assert torch.equal(packed.cost, masked.cost)
    for one, other in zip(packed.decisions, masked.decisions, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    return masked


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("name", GATE_SETS)
def test_packed_gives_the_logits_of_masked(tiny_vit, name, batch):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    out = assert_layouts_agree(model, images(batch))
    kept = torch.cat([keep.flatten() for layer in out.decisions for keep in layer.keeps().values()])
    assert 0.1 < kept.float().mean() < 0.9  # the agreement is about something


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("deactivation", ["attention", "official"])
@pytest.mark.parametrize("name", EXTREMES)
def test_layouts_agree_on_extreme_decisions(tiny_vit, name, deactivation, batch):
    model = gated(tiny_vit(LAYERS), [{"gate": "head", "deactivation": deactivation}])
    assert_layouts_agree(model, images(batch), decisions=extreme_decisions(name, batch, LAYERS))


@pytest.mark.parametrize("deactivation", ["attention", "official"])
@pytest.mark.parametrize("width", [32, 512])  # wide layers project without fusing
def test_layouts_agree_on_random_decisions(tiny_vit, deactivation, width):
    vit = tiny_vit(LAYERS, hidden_size=width, initializer_range=1.0 / width**0.5)
    model = gated(vit, [{"gate": "head", "deactivation": deactivation}])
    for keep in (0.2, 0.5, 0.8):
        assert_layouts_agree(model, images(8), decisions=random_decisions(8, LAYERS, keep=keep))


@pytest.mark.parametrize("options", [{"qkv_bias": False}, {"hidden_act": "relu"}, {"num_channels": 1}])
def test_layouts_agree_for_variants_of_the_host(tiny_vit, options):
    model = gated(tiny_vit(LAYERS, **options), GATE_SETS["all"])
    assert_layouts_agree(model, images(3, channels=options.get("num_channels", 3)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("gates", [None, GATE_SETS["all"], "adavit", "adavit-official"])
def test_open_or_absent_gates_leave_the_vit_as_it_was(tiny_vit, gates, layout, attention):
    vit = tiny_vit(LAYERS)
    vit.set_attn_implementation(attention)
    model = DynViTForImageClassification.from_vit(vit, gates=gates)
    pixel_values = images(3)
    with torch.no_grad():
        expected = vit(pixel_values).logits
    assert_close(run(model, layout, pixel_values).logits, expected, rtol=0, atol=1e-5)
    assert_close(run(model, layout, pixel_values, gating="open").logits, expected, rtol=0, atol=1e-5)


def test_replay_uses_the_given_decisions_and_nothing_of_the_gates(tiny_vit):
    vit = tiny_vit(LAYERS)
    model = gated(vit, GATE_SETS["all"])
    pixel_values = images(3)
    everything = run(model, "packed", pixel_values, decisions=[LayerDecisions()] * LAYERS)
    with torch.no_grad():
        assert_close(everything.logits, vit(pixel_values).logits, rtol=0, atol=1e-5)
    free = run(model, "packed", pixel_values)
    assert torch.equal(run(model, "masked", pixel_values, decisions=free.decisions).cost, free.cost)


def test_decisions_may_be_floats_and_are_kept_per_layer(tiny_vit):
    model = gated(tiny_vit(LAYERS), [{"gate": "head", "deactivation": "official"}])
    pixel_values, decisions = images(4), random_decisions(4, LAYERS)
    floats = [LayerDecisions(*(keep.float() for keep in decision.keeps().values())) for decision in decisions]
    for layout in ("masked", "packed"):
        one, other = (run(model, layout, pixel_values, decisions=d) for d in (decisions, floats))
        assert torch.equal(one.logits, other.logits) and torch.equal(one.cost, other.cost)
    with pytest.raises(ValueError, match=r"one entry per layer \(3\), got 2"):
        model(pixel_values, decisions=decisions[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("deactivation", ["attention", "official"])
def test_sixteen_bits_are_as_exact_packed_as_masked(tiny_vit, deactivation, dtype):
    model = gated(tiny_vit(LAYERS), [{"gate": "head", "deactivation": deactivation}])
    pixel_values, decisions = images(8), random_decisions(8, LAYERS)
    exact = run(model, "masked", pixel_values, decisions=decisions).logits
    model.to(dtype)
    scale = exact.abs().max() * torch.finfo(dtype).eps
    for layout in ("masked", "packed"):
        out = run(model, layout, pixel_values, decisions=decisions).logits
        assert out.dtype == dtype
        assert (out.float() - exact).abs().max() < 8 * scale


def test_layouts_agree_under_autocast(tiny_vit):
    model = gated(tiny_vit(LAYERS), [{"gate": "head"}])
    pixel_values, decisions = images(8), random_decisions(8, LAYERS)
    exact = run(model, "masked", pixel_values, decisions=decisions).logits
    with torch.autocast("cpu", torch.bfloat16):
        for layout in ("masked", "packed"):
            out = run(model, layout, pixel_values, decisions=decisions).logits
            assert (out.float() - exact).abs().max() < 8 * exact.abs().max() * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("decide", ["random", *EXTREMES])
@pytest.mark.parametrize("deactivation", ["attention", "official"])
def test_layouts_have_the_same_gradients_under_hard_decisions(tiny_vit, deactivation, decide):
    model = gated(tiny_vit(LAYERS), [{"gate": "head", "deactivation": deactivation}]).train()
    decisions = random_decisions(6, LAYERS) if decide == "random" else extreme_decisions(decide, 6, LAYERS)
    pixel_values, labels = images(6), torch.arange(6) % 5
    gradients = {}
    for model.layout in ("masked", "packed"):
        model.zero_grad()
        model(pixel_values, labels=labels, decisions=decisions).loss.backward()
        gradients[model.layout] = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()
        }
    assert any(gradient.any() for gradient in gradients["masked"].values())
    for name, gradient in gradients["masked"].items():
        assert_close(gradients["packed"][name], gradient, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", LEARNED_SETS)
def test_straight_through_gates_refuse_the_packed_layout(tiny_vit, name):
    model = gated(tiny_vit(), GATE_SETS[name]).train()
    model.layout = "packed"
    with pytest.raises(ValueError, match='straight-through gates learn .* model.layout = "masked"'):
        model(images(2))


def test_unset_layout_is_packed_in_evaluation_and_masked_in_training(tiny_vit):
    model = gated(tiny_vit(), GATE_SETS["all"])
    assert (model.eval().layout, model.train().layout) == ("packed", "masked")
    model.layout = "packed"
    assert model.layout == "packed"
    with pytest.raises(ValueError, match="layout must be one of .*packed.*masked.*got 'sparse'"):
        model.layout = "sparse"
