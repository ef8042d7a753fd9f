"""No images, images that are not numbers, tokens that nobody keeps, blocks of which a half runs: both layouts say the same."""

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch.testing import assert_close

from hf_dynvit import LayerDecisions
from hf_dynvit.model.prepack import can_prepack


LAYERS = 3


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*GATE_SETS, None])
def test_no_images_have_no_logits_and_no_cost(tiny_vit, name, attention, layout):
    vit = tiny_vit(LAYERS)
    vit.set_attn_implementation(attention)
    model = gated(vit, name and GATE_SETS[name])
    for dtype in (torch.float32, torch.bfloat16):
        pixels = images(0).to(dtype)
        for gating in ("threshold", "act", "open"):
            out = run(model.to(dtype), layout, pixels, gating=gating)
            assert out.logits.shape == (0, 5) and out.cost.shape == (0,)
        out = run(model, layout, pixels, patches=torch.arange(5), merge_patches=True)
        assert out.logits.shape == (0, 5) and out.cost.shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("name", [*GATE_SETS, None])
def test_an_image_that_is_not_a_number_has_no_finite_logits(tiny_vit, name, layout, value, monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)
    model = gated(tiny_vit(LAYERS), name and GATE_SETS[name])
    pixels = images(3)
    pixels[1, 0, 9, 9] = value
    for prepack in (False, True)[: 1 + can_prepack()]:
        if prepack:
            model.prepack()
        for gating in ("threshold", "open"):
            logits = run(model, layout, pixels, gating=gating).logits
            assert logits[1].isnan().all() and logits[[0, 2]].isfinite().all()


def test_patches_that_are_gone_may_be_anything(tiny_vit):
    model = gated(tiny_vit(LAYERS), GATE_SETS["patch on block"])
    pixels = images(3)
    pixels[:, :, :8, :8] = torch.nan  # patch 0
    for layout in ("packed", "masked"):
        assert run(model, layout, pixels, patches=torch.arange(1, 16)).logits.isfinite().all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("merged", [False, True])
def test_an_image_that_keeps_no_token_passes_by(tiny_vit, attention, merged):
    vit = tiny_vit(LAYERS)
    vit.set_attn_implementation(attention)
    model = gated(vit, GATE_SETS["patch merged"] if merged else GATE_SETS["patch on block"])
    keep = torch.rand(3, 17) < 0.5
    keep[1] = False
    itself = torch.arange(17).expand(3, -1) if merged else None
    decisions = [LayerDecisions(keep, keep, into=itself)] * LAYERS
    found = [
        run(model, layout, images(3, generator=torch.Generator().manual_seed(1)), decisions=decisions)
        for layout in ("packed", "masked")
    ]
    assert found[0].logits.isfinite().all()
    assert_close(found[0].logits, found[1].logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["block", "block upfront", "random block"])
@pytest.mark.parametrize("halves", [(True, False), (False, True), "mixed"])
def test_half_a_block_is_replayed_as_half_a_block(tiny_vit, name, halves):
    model, pixels = gated(tiny_vit(LAYERS), GATE_SETS[name]), images(4)
    sublayers = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]) if halves == "mixed" else torch.tensor([halves] * 4)
    decisions = [LayerDecisions(sublayers=sublayers.bool())] * LAYERS
    packed, masked = (run(model, layout, pixels, decisions=decisions) for layout in ("packed", "masked"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)
