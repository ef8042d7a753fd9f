"""Calibration for several budgets at once: a table of thresholds that meets each, and is gone once it would be stale."""

import pytest
import torch
from models import gated, images
from trainers import Images, build_trainer

from hf_dynvit import DynViTForImageClassification, calibrate, fit_bypass, fit_importance
from hf_dynvit.search import burn_in
from hf_dynvit.training import calibration
from hf_dynvit.training import trainer as training
from hf_dynvit.training.starting_model import ModelArguments, load_model


NOVELTY = [{"gate": "patch", "drop": True, "novelty": 8.0}]
BUDGETS = [0.8, 0.5, 0.65]


@pytest.fixture
def model(tiny_vit):
    return DynViTForImageClassification.from_vit(tiny_vit(), gates=NOVELTY, budget=0.6)


def said_by(logger, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    return said


def test_each_budget_of_the_table_is_met_and_those_between(model):
    batches = [images(64), images(64)]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shift, cost = calibrate(model, batches, budgets=BUDGETS)
    assert [budget for budget, _ in model.config.budget_shifts] == sorted(BUDGETS)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with torch.no_grad():
        for budget, tolerance in ((0.5, 0.005), (0.65, 0.005), (0.8, 0.005), (0.55, 0.02), (0.75, 0.02)):
            costs = torch.cat([model(batch, budget=budget).cost for batch in batches])
            assert costs.mean().item() == pytest.approx(budget, abs=tolerance)
        assert torch.cat([model(batch).cost for batch in batches]).mean().item() == pytest.approx(cost, abs=1e-6)
    assert model.config.budget == 0.6 and cost == pytest.approx(0.6, abs=0.02)
    assert model.config.budget_shifts[0][1] < shift < model.config.budget_shifts[1][1]


def test_the_budget_of_the_model_becomes_one_in_reach(model):
    calibrate(model.set_budget(1.0), [images(64)], budgets=BUDGETS)
    assert model.config.budget == 0.8
    model.set_budget(0.5)


def test_calibrating_again_replaces_the_table(model):
    batches = [images(64)]
    calibrate(model, batches, budgets=BUDGETS)
    calibrate(model.set_budget(0.5), batches, budgets=[0.5, 0.7])
    assert [budget for budget, _ in model.config.budget_shifts] == [0.5, 0.7]
    assert abs(model.config.budget_shifts[0][1]) < 0.1  # biases have been moved to where the model decided
    _, cost = calibrate(model, batches, 0.7)
    assert model.config.budget_shifts is None and cost == pytest.approx(0.7, abs=0.005)
    assert model(batches[0]).cost.mean().item() == pytest.approx(cost, abs=1e-6)


def test_budgets_that_are_not_met_are_left_out_and_said(tiny_vit, monkeypatch):
    said = said_by(calibration.logger, monkeypatch)
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "block", "layers": [1]}], budget=0.9)
    calibrate(model, [images(16)], budgets=[1.0, 0.8])  # fresh: all images decide alike
    assert [budget for budget, _ in model.config.budget_shifts] == [1.0] and model.config.budget == 1.0
    assert len(said) == 1 and "left out of the table of budgets: 0.8 (nearest 0.6" in said[0]
    calibrate(model, [images(16)], budgets=[0.8, 0.75])
    assert model.config.budget_shifts is None and "keeps the one budget that it has" in said[1]


def test_what_is_no_aim_is_refused(model):
    for aims in ({}, {"budget": 0.5, "budgets": [0.5]}, {"budget": 0.5, "batch_size": 1}):
        with pytest.raises(ValueError, match=r"calibrate takes one of \['budget', 'budgets', 'milliseconds'\], got"):
            calibrate(model, [images(2)], **aims)
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got 1.5"):
        calibrate(model, [images(2)], budgets=[0.5, 1.5])
    with pytest.raises(ValueError, match="budgets must be 1 to 64 different ones, got 0"):
        calibrate(model, [images(2)], budgets=[])


@pytest.mark.parametrize("fit", ["importance", "bypass"])
def test_what_is_fitted_makes_the_table_stale(tiny_vit, fit):
    gates = [*NOVELTY, {"gate": "sublayer", "bypass": "mean"}]
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=gates, budget=0.6)
    calibrate(model, [images(64)], budgets=BUDGETS)
    {"importance": fit_importance, "bypass": fit_bypass}[fit](model, [images(16)])
    assert model.config.budget_shifts is None


def test_a_layer_that_is_burnt_in_leaves_gates_as_they_decided(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "patch", "drop": True, "layers": [1, 2]}], budget=0.5)
    model.config.layer_mask = [[True, True], [False, False], [True, True]]
    model.config.budget_shifts = [[0.4, -3.0], [0.6, -1.0]]
    small, pixel_values = burn_in(model), images(4)
    assert small.config.budget_shifts is None
    torch.testing.assert_close(small(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-5)


def test_training_with_budgets_in_turn_gives_one_model_for_all_of_them(tiny_vit, tmp_path, monkeypatch):
    options = {"freeze_gates_at": 0.5, "tuning_budgets": [0.6, 0.8], "calibrate_first": True}
    trainer = build_trainer(tiny_vit, tmp_path, gates=NOVELTY, budget=0.6, **options)
    trainer.train()
    model = trainer.model
    assert [budget for budget, _ in model.config.budget_shifts] == [0.6, 0.8] and model.config.budget == 0.6
    trainer.save_model(tmp_path / "saved")
    loaded = DynViTForImageClassification.from_pretrained(tmp_path / "saved")
    unseen = torch.stack([item["pixel_values"] for item in Images(64, seed=3)])
    for budget in (0.6, 0.7, 0.8):
        assert loaded.set_budget(budget)(unseen).cost.mean().item() == pytest.approx(budget, abs=0.05)

    said = said_by(training.logger, monkeypatch)
    again = build_trainer(tiny_vit, tmp_path, gates=NOVELTY, budget=0.6, max_steps=1, calibration_images=0)
    again.model.config.budget_shifts = [[0.5, -1.0], [0.7, 1.0]]
    before = again.model.learned_gates()[0].score.bias.item()
    again.evaluate()
    assert again.model.config.budget_shifts is not None and not said
    again.train()
    assert again.model.config.budget_shifts is None and "table of budgets is dropped" in said[0]
    assert again.model.learned_gates()[0].score.bias.item() == pytest.approx(before, abs=0.1)


def test_one_budget_makes_no_table(tiny_vit, tmp_path):
    options = {"freeze_gates_at": 0.5, "tuning_budgets": [0.6], "max_steps": 2}
    trainer = build_trainer(tiny_vit, tmp_path, gates=NOVELTY, budget=0.6, **options)
    trainer.train()
    assert trainer.model.config.budget_shifts is None


def test_a_training_without_images_to_calibrate_on_makes_no_table(tiny_vit, tmp_path):
    options = {"freeze_gates_at": 0.5, "tuning_budgets": [0.6, 0.8], "max_steps": 2, "calibration_images": 0}
    trainer = build_trainer(tiny_vit, tmp_path, gates=NOVELTY, budget=0.6, **options)
    trainer.train()
    assert trainer.model.config.budget_shifts is None


@pytest.mark.parametrize(("budget", "kept"), [(0.55, True), (0.3, False)])
def test_training_goes_on_to_a_budget_beyond_the_table(model, tmp_path, budget, kept):
    model.config.budget_shifts, model.config.budget = [[0.5, -1.0], [0.7, 1.0]], 0.6
    model.save_pretrained(tmp_path)
    model_args = ModelArguments(model_name_or_path=str(tmp_path), gates="keep", budget=budget)
    loaded = load_model(model_args, model.config, None)
    assert loaded.config.budget == budget and (loaded.config.budget_shifts is not None) == kept


def test_each_budget_of_a_tuning_begins_where_it_is_met_and_has_one_shift_however_often_it_is_named(
    tiny_vit, tmp_path
):
    turns = [0.6, 0.4, 0.8, 0.4]
    trainer = build_trainer(
        tiny_vit, tmp_path, NOVELTY, 0.6, freeze_gates_at=0.0, tuning_budgets=turns, tuning_gain=0.0, max_steps=4
    )
    trainer.train()
    tuning = next(call for call in trainer.callback_handler.callbacks if type(call).__name__ == "PackedTuning")
    assert len(tuning.shifts) == 3 and tuning.shifts[1] < 0 == tuning.shifts[0] < tuning.shifts[2]
    costs = [entry["cost"] for entry in trainer.state.log_history if "cost" in entry]
    for cost, budget in zip(costs, turns, strict=True):  # from the first step on
        assert cost == pytest.approx(budget, abs=0.08)
    tuning.load_state_dict({"shifts": [0.0, -1.0, 1.0, -2.0]})  # of a checkpoint from when each turn had its own
    assert tuning.shifts == [0.0, -1.0, 1.0]


def test_the_models_own_budget_need_not_be_the_first_turn_but_among_them(tiny_vit, tmp_path):
    options = {"freeze_gates_at": 0.0, "tuning_gain": 0.0, "max_steps": 3}
    trainer = build_trainer(tiny_vit, tmp_path, NOVELTY, 0.6, tuning_budgets=[0.4, 0.6, 0.8], **options)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "cost" in entry]
    assert costs == pytest.approx([0.4, 0.6, 0.8], abs=0.08) and trainer.tuning.shifts[0] == 0.0
    trainer.tuning.load_state_dict(
        {"shifts": [-1.0, 0.0, 1.0]}
    )  # from when the first turn stood for the model's own budget
    assert trainer.tuning.shifts == [0.0, -1.0, 1.0]
    trainer.tuning.load_state_dict({"shifts": [0.0, -2.0, 2.0], "budgets": [0.6, 0.4, 0.8]})
    assert trainer.tuning.shifts == [0.0, -2.0, 2.0]
    with pytest.raises(ValueError, match=r"must have the model's budget among them, 0.6, got \[0.4, 0.8\]"):
        build_trainer(tiny_vit, tmp_path, NOVELTY, 0.6, tuning_budgets=[0.4, 0.8], **options)


def test_a_tuning_that_is_broken_off_leaves_the_model_at_its_own_budget(tiny_vit, tmp_path, monkeypatch):
    options = {"freeze_gates_at": 0.0, "tuning_budgets": [0.6, 0.4], "max_steps": 4, "tuning_gain": 0.0}
    trainer = build_trainer(tiny_vit, tmp_path, NOVELTY, 0.6, **options)
    step, done = trainer.training_step, []

    def stopped(*args, **kwargs):
        if done:
            raise KeyboardInterrupt
        done.append(step(*args, **kwargs))
        return done[0]

    monkeypatch.setattr(trainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    unseen = torch.stack([item["pixel_values"] for item in Images(64, seed=3)])
    assert trainer.model.eval()(unseen).cost.mean().item() == pytest.approx(0.6, abs=0.06)
