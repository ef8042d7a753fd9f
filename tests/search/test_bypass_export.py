"""A search knows what skipped layers add instead, and static models keep it where they can hold it."""

import pytest
import torch
from models import gated, images, latency_table, run
from torch.testing import assert_close
from transformers import ViTForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.bypass import bypass_of
from hf_dynvit.report.search_results import save_picked
from hf_dynvit.search import MaskScores, MaskSpace, burn_in
from hf_dynvit.search.export import hold_open


LAYERS = 4
MASK = [[True, True], [False, False], [True, True], [False, False]]


def masked(vit, kind, mask=MASK, gate="block", **options):
    model = gated(vit, [{"gate": gate, "bypass": kind, "rank": 4, **options}])
    model.config.layer_mask = mask
    return model


def test_masks_are_scored_with_what_they_add_and_pay_for_it(tiny_vit):
    model = masked(tiny_vit(LAYERS), "linear", None)
    pixel_values = images(16)
    space, mask = MaskSpace(LAYERS), MaskSpace(LAYERS).layer_mask((False, True, False))
    model.config.layer_mask = mask
    out = run(model, "packed", pixel_values, gating="open")
    model.config.layer_mask = None
    scores = MaskScores(model, space, [(pixel_values, out.logits.argmax(1))], gating="open")((False, True, False))
    assert scores["accuracy"] == 1.0 and scores["cost"] == pytest.approx(out.cost.mean().item())
    timed = {"gating": "open", "latencies": latency_table(model)}
    timed = MaskScores(model, space, [(pixel_values, out.logits.argmax(1))], **timed)
    found = timed((False, True, False))["milliseconds"]  # two layers, the bypasses of two, and the rest
    assert found == pytest.approx(2 * 5.1 + 2 * (1.0 - 0.5) + 2.0)


@pytest.mark.parametrize("gate", ["block", "sublayer", "random"])
@pytest.mark.parametrize("mask", [MASK, [[True, True], [False, True], [True, False], [False, False]]])
def test_without_its_policy_a_masked_model_keeps_the_bypasses_that_the_mask_needs(tiny_vit, tmp_path, gate, mask):
    options = {"unit": "sublayer"} if gate == "random" else {"layers": [1, 2, 3]}
    model = masked(tiny_vit(LAYERS), "low_rank", mask, gate, **options)
    pixel_values = images(3)
    wanted = run(model, "masked", pixel_values, gating="open").logits
    save_picked(model, Nothing(), {"layer_mask": mask}, tmp_path, "process", False)
    loaded = DynViTForImageClassification.from_pretrained(tmp_path / "picked").eval()
    for layout in ("masked", "packed"):
        assert_close(run(loaded, layout, pixel_values).logits, wanted, rtol=0, atol=1e-4)
    kept = [layer for layer, gates in enumerate(loaded.gates) if gates]
    assert kept == [layer for layer, pair in enumerate(mask) if not all(pair)]
    assert [entry["layers"] for entry in loaded.config.gates] == [[layer] for layer in kept]


class Nothing:
    """A processor that saves nothing."""

    def save_pretrained(self, folder):
        pass


def test_without_bypasses_no_gate_is_left(tiny_vit):
    model = masked(tiny_vit(LAYERS), "none")
    hold_open(model)
    assert model.config.gates is None and not any(len(gates) for gates in model.gates)


@pytest.mark.parametrize("gate", ["block", "sublayer"])
@pytest.mark.parametrize("mask", [MASK, [[True, True], [False, False], [False, False], [True, True]]])
def test_means_go_into_a_plain_vit(tiny_vit, gate, mask):
    model, pixel_values = masked(tiny_vit(LAYERS), "mean", mask, gate), images(3)
    hold_open(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = burn_in(model)
    assert type(small) is ViTForImageClassification and len(small.vit.layers) == 2
    with torch.no_grad():
        assert_close(small(pixel_values).logits, run(model, "masked", pixel_values).logits, rtol=0, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_mean_goes_into_an_attention_that_is_alone(tiny_vit):
    mask = [[True, True], [True, False], [False, False], [True, True]]
    model, pixel_values = masked(tiny_vit(LAYERS), "mean", mask, layers=[2]), images(3)
    small = burn_in(model)
    assert small.config.layer_mask == [[True, True], [True, False], [True, True]] and small.config.gates is None
    for layout in ("masked", "packed"):
        assert_close(
            run(small, layout, pixel_values).logits, run(model, layout, pixel_values).logits, rtol=0, atol=1e-4
        )


def test_what_a_smaller_model_cannot_hold_is_refused_and_what_adds_nothing_is_not(tiny_vit):
    for kind in ("diagonal", "linear", "low_rank"):
        model = masked(tiny_vit(LAYERS), kind)
        hold_open(model)
        with pytest.raises(
            ValueError, match=rf"layer 1 is skipped with a bypass \['{kind}'\].*use the model with its layer_mask"
        ):
            burn_in(model)
    with pytest.raises(ValueError, match="only means fit .* where a layer without gates comes before it"):
        burn_in(masked(tiny_vit(LAYERS), "mean"))  # whose gate may skip the layer before
    with pytest.raises(ValueError, match="layer 0 is skipped"):
        burn_in(masked(tiny_vit(LAYERS), "mean", [[False, False], *[[True, True]] * 3], layers=[0]))
    fresh = DynViTForImageClassification.from_vit(tiny_vit(LAYERS), gates=[{"gate": "block", "bypass": "linear"}])
    fresh.config.layer_mask = MASK
    assert burn_in(fresh).config.num_hidden_layers == 2 and len(bypass_of(burn_in(fresh).gates[0])) == 1
