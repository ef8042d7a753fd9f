"""Claims about budgets: which ones gates can meet, what a mask leaves of them, and what is said of the others."""

import math

import pytest
import torch
from models import GATE_SETS, LEARNED_SETS, gated, images, run
from trainers import build_trainer, weights

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.gate import LearnedGate
from hf_dynvit.training import calibration
from hf_dynvit.training.calibration import calibrate, check_budgets, cost_range, steady_range


BLOCKS = [{"gate": "block", "layers": [1, 2, 3], "value_width": 8}]
MASK = [[True, True], [False, False], [True, True], [True, True]]


def masked_trainer(tiny_vit, folder, gates=BLOCKS, **options):
    trainer = build_trainer(
        lambda **fields: tiny_vit(4, **fields), folder, gates=gates, **{"objective": "reinforce"} | options
    )
    trainer.model.config.layer_mask = MASK
    return trainer


@pytest.mark.parametrize("name", LEARNED_SETS)
def test_no_decision_costs_less_or_more_than_the_reach(tiny_vit, name):
    model = gated(tiny_vit(3), GATE_SETS[name]).train()
    before = weights(model)
    least, most = cost_range(model)
    assert (least < most) == (name != "token by predictor")  # as many tokens wherever the threshold is
    assert model.training and model._layout is None
    assert all(torch.equal(before[key], value) for key, value in weights(model).items())
    costs = run(model.eval(), "packed", images(8)).cost
    assert least - 1e-6 <= costs.min() and costs.max() <= most + 1e-6


def test_a_mask_lowers_what_can_be_reached(tiny_vit):
    model = gated(tiny_vit(4), BLOCKS)
    free = cost_range(model)
    model.config.layer_mask = MASK
    least, most = cost_range(model)
    # A layer is gone from the dearest and, but for its gate, none from the cheapest, which closes all three anyway.
    assert 0.7 < most < 0.8 and free[1] == pytest.approx(1.0, abs=1e-2)
    assert least == pytest.approx(free[0], abs=1e-3)
    for gate in model.modules():
        if isinstance(gate, LearnedGate):
            torch.nn.init.constant_(gate.score.bias, 1e3)
    assert run(model, "masked", images(3)).cost.tolist() == pytest.approx([most] * 3)


def test_random_gates_and_models_without_any_are_not_judged(tiny_vit):
    for gates in (None, [{"gate": "random"}, {"gate": "sublayer"}]):
        assert check_budgets(gated(tiny_vit(), gates), [0.01]) == 1.0


def test_a_budget_out_of_reach_is_refused_before_training(tiny_vit, tmp_path):
    trainer = masked_trainer(tiny_vit, tmp_path, budget=0.9)
    with pytest.raises(
        ValueError, match=r"budget of 0.9 is out of reach: its gates under its layer_mask .* and 0.7\d"
    ):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ValueError, match=r"budget of 0.01 is out of reach: its gates can bring the cost"):
        build_trainer(tiny_vit, tmp_path, budget=0.01).train()
    with pytest.raises(ValueError, match=r"budget of 0.02 is out of reach"):
        build_trainer(tiny_vit, tmp_path, budget=0.6, tuning_budgets=[0.6, 0.02], freeze_gates_at=0.5).train()


def test_a_budget_that_nothing_aims_at_is_not_refused(tiny_vit, tmp_path):
    options = {"price_gain": 0.0, "price": 1.0, "calibration_images": 0, "max_steps": 1}
    masked_trainer(tiny_vit, tmp_path, budget=0.9, **options).train()


def test_under_a_mask_thresholds_are_brought_to_the_budget(tiny_vit, tmp_path):
    trainer = masked_trainer(tiny_vit, tmp_path, budget=0.6, train_body=False, max_steps=4)
    trainer.train()
    (cost,) = [entry["calibration_cost"] for entry in trainer.state.log_history if "calibration_cost" in entry]
    assert cost == pytest.approx(0.6, abs=0.01)
    assert trainer.model.config.layer_mask == MASK


def test_the_budget_falls_from_what_the_mask_leaves(tiny_vit, tmp_path):
    trainer = masked_trainer(tiny_vit, tmp_path, budget=0.6, budget_ramp=0.5, max_steps=8)
    aims = []
    trainer.model.register_forward_hook(
        lambda model, *_: aims.append(trainer.schedule.budget()) if model.training else None
    )
    trainer.train()
    most = cost_range(trainer.model)[1]
    assert aims[0] == pytest.approx(most, abs=1e-3) and aims[4:] == [0.6] * 4 and most < 0.8


def test_gates_alone_learn_to_the_end(tiny_vit, tmp_path):
    trainer = masked_trainer(tiny_vit, tmp_path, budget=0.6, train_body=False, freeze_gates_at=0.5, max_steps=4)
    assert trainer.args.freeze_gates_at == 1.0
    trainer.train()
    assert trainer.state.global_step == 4


def test_straight_through_gates_alone_learn_from_the_labels(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, train_body=False, cost_weight=0.0, calibration_images=0)
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, value in weights(trainer.model).items() if not torch.equal(before[name], value)}
    assert any(name.endswith("score.weight") for name in changed)
    assert all(name.startswith("gates.") for name in changed)


def test_a_calibration_that_misses_says_so(tiny_vit, monkeypatch):
    said = []
    monkeypatch.setattr(calibration.logger, "warning", said.append)
    model = gated(tiny_vit(3), [{"gate": "block"}])
    for gate in model.modules():
        if isinstance(gate, LearnedGate):  # all images alike
            torch.nn.init.zeros_(gate.score.weight)
            torch.nn.init.zeros_(gate.score.bias)
    _, cost = calibrate(model, [images(4)], 0.5)
    assert abs(cost - 0.5) > 0.3  # everything or nothing
    assert (
        len(said) == 1
        and f"the budget is 0.5, and the nearest mean cost that the gates' thresholds give is {cost:.3f}" in said[0]
    )


def test_measuring_the_reach_draws_nothing_where_scores_are_random(tiny_vit):
    gates = [{"gate": "token", "score": "random", "top": 12, "layers": [0]}, {"gate": "merge", "layers": [1]}]
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=gates).eval()
    before = torch.get_rng_state()
    assert steady_range(model) == (-math.inf, math.inf)
    assert torch.equal(torch.get_rng_state(), before)
