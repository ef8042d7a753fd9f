"""A policy that starts from a mask decides as the mask does, for every image, until it has learned to depart from it."""

import pytest
import torch
from models import images, run

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.search import start_from_mask


MASK = [[True, True], [False, True], [True, False], [False, False]]
BY_SUBLAYER = [{"gate": "block", "granularity": "sublayer", "layers": [1, 2, 3]}]
BY_BLOCK = [{"gate": "block", "layers": [1, 2, 3]}]


@pytest.mark.parametrize(
    ("gates", "mask"),
    [(BY_SUBLAYER, MASK), (BY_BLOCK, [[True, True], [False, False], [True, True], [False, False]])],
)
def test_fresh_policies_give_what_the_masked_model_gives(tiny_vit, gates, mask):
    vit, pixel_values = tiny_vit(4), images(3)
    model = DynViTForImageClassification.from_vit(vit, gates)
    start_from_mask(model, mask)
    masked = DynViTForImageClassification.from_vit(vit)
    masked.config.layer_mask = mask
    out = run(model, "packed", pixel_values)
    assert torch.allclose(out.logits, run(masked, "packed", pixel_values).logits, atol=1e-5)
    assert [d.sublayers[0].tolist() for d in out.decisions[1:]] == mask[1:]


@pytest.mark.parametrize("threshold", [0.1, 0.96])
def test_gates_of_any_threshold_decide_as_the_mask_does(tiny_vit, threshold):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), [{**BY_SUBLAYER[0], "threshold": threshold}])
    start_from_mask(model, MASK)
    decided = run(model, "packed", images(2)).decisions[1:]
    assert [decision.sublayers[0].tolist() for decision in decided] == MASK[1:]


def test_they_still_explore(tiny_vit):
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(tiny_vit(4), BY_SUBLAYER)
    start_from_mask(model, MASK)
    drawn = model(images(64), gating="act").decisions[3].sublayers.float().mean()
    assert 0.02 < drawn < 0.3


@pytest.mark.parametrize(
    ("gates", "mask", "message"),
    [
        (BY_SUBLAYER, MASK[:3], "has 3 layers, the model 4"),
        (BY_SUBLAYER, [[False, True], *MASK[1:]], "skips in layer 0, where no block gate decides"),
        (BY_BLOCK, MASK, "parts attention and MLP in layer 1"),
    ],
)
def test_a_mask_that_gates_cannot_follow_is_refused(tiny_vit, gates, mask, message):
    with pytest.raises(ValueError, match=message):
        start_from_mask(DynViTForImageClassification.from_vit(tiny_vit(4), gates), mask)
