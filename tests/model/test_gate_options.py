"""Options of gates are what they say, or are refused by name; and what a gate does with numbers that are none."""

import pytest
import torch
from models import GATE_SETS, LEARNED_SETS, gated, images, run
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification, DynViTModel
from hf_dynvit.model.gate import Exploration, cut, sample_straight_through


NAN, INF = float("nan"), float("inf")
LEARNED = ("patch", "head", "sublayer", "block")


def bad(gates, option, *values):
    return [(gate, option, value) for gate in gates for value in values]


@pytest.mark.parametrize(
    "gate, option, value",
    [
        *bad(LEARNED, "init_bias", NAN, INF, "3", None, True, [3.0]),
        *bad(LEARNED, "tau", NAN, INF, -1.0, "1", None, False),
        *bad(LEARNED, "threshold", NAN, 0.0, 1, "0.5", None),
        *bad(LEARNED, "value_width", -1, 2.5, NAN, "64", True, 10**9),
        *bad(("patch",), "novelty", NAN, INF, -1.0, "8", None, True),
        *bad(("patch", "random"), "drop", "false", "true", 0, 1, None),
        *bad(("patch", "random"), "merge", "false", 1, None),
        *bad(("patch", "random"), "on", ["block"], None, True),
        *bad(("random",), "rate", NAN, INF, -0.1, "0.5", None, True),
        *bad(("random",), "unit", ["patch"], None),
        *bad(("block",), "upfront", "false", 1, None),
        *bad(("block",), "pool", ["cls"], None),
        *bad(("block",), "granularity", {}, 1),
        *bad(("head",), "deactivation", ["official"], None),
    ],
)
def test_values_that_an_option_cannot_have_are_refused_by_name(tiny_vit, gate, option, value):
    with pytest.raises(ValueError) as refused:
        DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": gate, option: value}])
    message = str(refused.value)
    assert message.startswith(f"{option} of a ") and message.endswith(f", got {value!r}") and " must be " in message


def test_integers_and_edges_are_numbers_too(tiny_vit):
    gates = [
        {"gate": "patch", "tau": 2, "init_bias": -3, "novelty": 0, "drop": True, "merge": False},
        {"gate": "random", "unit": "head", "rate": 1},
        {"gate": "block", "value_width": 0, "upfront": False},
    ]
    DynViTForImageClassification.from_vit(tiny_vit(), gates=gates)


@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_without_noise_a_sample_is_what_evaluation_decides(tau, threshold):
    logits = torch.linspace(-3, 3, 2001)
    sampled = sample_straight_through(logits, tau, threshold, noise=0.0)
    assert torch.equal(sampled > 0.5, logits > cut(threshold))


@pytest.mark.parametrize("name", ["patch on block", "head", "sublayer", "block"])
def test_gates_of_any_temperature_sample_without_noise_as_they_evaluate(tiny_vit, name):
    model = gated(tiny_vit(), [{**gate, "tau": 5.0, "threshold": 0.6} for gate in GATE_SETS[name]])
    pixel_values = images(16)
    evaluated = run(model, "masked", pixel_values)
    sampled = run(model, "masked", pixel_values, gating="sample", exploration=Exploration(noise=0.0))
    assert torch.equal(sampled.cost, evaluated.cost)
    for one, other in zip(sampled.decisions, evaluated.decisions, strict=True):
        for a, b in zip(one.keeps().values(), other.keeps().values(), strict=True):
            assert torch.equal(a > 0.5, b)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("name", ["patch on block", "patch on mlp", "patch merged", "patch by novelty"])
def test_a_pixel_that_is_no_number_shows_in_the_logits_of_its_image_alone(tiny_vit, name, layout):
    model = gated(tiny_vit(3), GATE_SETS[name])
    for layer in model.gates:  # all but shut, so that what is dropped would not show
        for gate in layer.values():
            torch.nn.init.constant_(gate.score.bias, -100.0)
    pixel_values = images(3)
    expected = run(model, layout, pixel_values)
    pixel_values[1, 0, 20, 20] = NAN
    out = run(model, layout, pixel_values)
    assert out.logits[1].isnan().all()
    assert_close(out.logits[[0, 2]], expected.logits[[0, 2]], rtol=0, atol=1e-4)
    assert torch.equal(out.cost[[0, 2]], expected.cost[[0, 2]]) and out.cost.isfinite().all()


@pytest.mark.parametrize("name", LEARNED_SETS)
def test_weights_that_are_no_numbers_keep_everything_and_do_not_load(tiny_vit, tmp_path, name):
    model = gated(tiny_vit(), GATE_SETS[name])
    model.save_pretrained(tmp_path / "sound")
    type(model).from_pretrained(tmp_path / "sound")
    for layer in model.gates:
        for gate in layer.values():
            torch.nn.init.constant_(gate.score.bias, NAN)
    out = run(model, "masked", images(3))
    assert all(keep.all() for decision in out.decisions for keep in decision.keeps().values())
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"gates\.\d\.\w+\.score\.bias first"):
        type(model).from_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match="weights of gates .* not finite"):
        DynViTModel.from_pretrained(tmp_path / "broken", output_loading_info=True)
