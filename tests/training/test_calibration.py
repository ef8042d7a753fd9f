"""Thresholds at the budget: images to begin with, no shift that runs away, and a word where gates are taught otherwise."""

import pytest
import torch
from models import images
from trainers import GATES, Images, build_trainer

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.training import calibration, checks
from hf_dynvit.training import trainer as training
from hf_dynvit.training.calibration import calibrate, calibration_images
from hf_dynvit.training.shifts import WIDEST


NOVELTY = [{"gate": "patch", "drop": True, "novelty": 16.0}]
FIRST = {"calibrate_first": True, "gate_learning_rate": 1e-6, "max_steps": 2, "per_device_train_batch_size": 16}


def alone(tiny_vit, folder, gates=NOVELTY, train_dataset=None, budget=0.6, **options):
    """A trainer without a calibration set."""
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=gates, budget=budget)
    options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, **options}
    args = DynViTTrainingArguments(str(folder), disable_tqdm=True, **options)
    return DynViTTrainer(model, args, train_dataset=train_dataset, eval_dataset=Images(64, seed=1))


def test_without_a_calibration_set_images_of_train_take_its_place_and_it_is_said(tiny_vit, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(training.logger, "warning", said.append)
    trainer = alone(tiny_vit, tmp_path, train_dataset=Images(96), calibration_images=48, **FIRST)
    assert len(said) == 1 and "calibrate_first takes 48 images of train_dataset" in said[0]
    chosen = calibration_images(trainer.calibration_dataset, 48, 0).indices
    assert len(set(chosen)) == 48 and max(chosen) > 60 and chosen != sorted(chosen)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    assert costs == pytest.approx([0.6, 0.6], abs=0.1) and trainer.evaluate()["eval_cost"] == pytest.approx(
        0.6, abs=0.05
    )


def test_without_any_images_to_begin_with_it_is_refused(tiny_vit, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from Images(4)

    with pytest.raises(ValueError, match="train_dataset without length cannot be drawn from"):
        alone(tiny_vit, tmp_path, train_dataset=Stream(), **FIRST)
    with pytest.raises(ValueError, match="give calibration_dataset or train_dataset"):
        alone(tiny_vit, tmp_path, **FIRST).train()
    with pytest.raises(ValueError, match="calibrate_first needs calibration_images of at least 1, got 0"):
        alone(tiny_vit, tmp_path, train_dataset=Images(8), calibration_images=0, **FIRST)
    assert alone(tiny_vit, tmp_path, **FIRST).evaluate()["eval_cost"] > 0.9  # nothing to begin
    alone(tiny_vit, tmp_path, gates=None, budget=1.0, train_dataset=Images(16), **FIRST).train()


def test_an_empty_calibration_set_is_refused(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=NOVELTY)
    args = DynViTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="calibration_dataset is empty"):
        DynViTTrainer(model, args, train_dataset=Images(8), calibration_dataset=Images(0))


@pytest.mark.parametrize(("budget", "sign"), [(0.05, -1), (1.2, 1)])
def test_shifts_do_not_run_away_from_a_budget_that_thresholds_cannot_meet(tiny_vit, tmp_path, budget, sign):
    gates = [{"gate": "block", "layers": [1]}]
    options = {"freeze_gates_at": 0.0, "tuning_gain": 100.0, "max_steps": 6, "calibration_images": 0}
    trainer = build_trainer(tiny_vit, tmp_path, gates=gates, budget=0.7, **options)
    shifts = []
    tuning = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PackedTuning")
    tuning._budgets = lambda: [budget]  # as after a mask or a data set that leaves less
    step_end = tuning.on_step_end

    def spy(*args, **kwargs):
        step_end(*args, **kwargs)
        shifts.append(tuning.shifts[0])

    tuning.on_step_end = spy
    trainer.train()
    assert len(shifts) == 6 and all(abs(shift) <= WIDEST for shift in shifts)
    assert shifts[-1] == shifts[1]  # closed or open as far as it goes: nothing winds up
    assert shifts[-1] * sign >= 0


def test_shifts_stop_where_the_calibration_does(tiny_vit, tmp_path):
    # A gate that draws at random takes so much away that open gates do not reach the budget.
    gates = [{"gate": "random", "unit": "block", "rate": 0.1, "layers": [0]}, {"gate": "sublayer", "layers": [1]}]
    options = {"freeze_gates_at": 0.0, "tuning_gain": 100.0, "max_steps": 4, "calibration_images": 0}
    trainer = build_trainer(tiny_vit, tmp_path, gates=gates, budget=0.9, **options)
    trainer.train()
    tuning = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PackedTuning")
    assert tuning.shifts == [WIDEST]


@pytest.mark.parametrize(
    ("gates", "options", "words"),
    [
        ("layerskip", {}, ["'layerskip'", "'reinforce'", "'cost'", "preset_arguments('layerskip')"]),
        ("adavit-official", {}, ["'usage'", "preset_arguments('adavit-official')"]),
        ("layerskip", {"objective": "reinforce"}, None),
        ("adavit", {}, None),
        (GATES, {}, None),
        (None, {}, None),
    ],
    ids=str,
)
def test_gates_of_a_preset_under_another_objective_are_warned_of(
    tiny_vit, tmp_path, monkeypatch, gates, options, words
):
    said = []
    monkeypatch.setattr(checks.logger, "warning", said.append)
    build = {"gates": gates, "budget": 0.6 if gates else 1.0, **options}
    alone(lambda **fields: tiny_vit(4, **fields), tmp_path, train_dataset=Images(8), **build)
    assert len(said) == (words is not None)
    assert all(word in said[0] for word in words or [])
    alone(lambda **fields: tiny_vit(4, **fields), tmp_path, **build)  # evaluates alone
    assert len(said) == (words is not None)


def test_a_given_calibration_set_is_drawn_from_at_random_too(tiny_vit, tmp_path, monkeypatch):
    seen = []

    class Noted(Images):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    trainer = build_trainer(tiny_vit, tmp_path, calibration_images=16)
    trainer.calibration_dataset = Noted(64)
    trainer.calibrate()
    assert len(set(seen)) == 16 and max(seen) > 32 and seen != sorted(seen)


def test_processes_calibrate_alike_on_images_whose_preparation_draws(tiny_vit, tmp_path, monkeypatch):
    class Noisy(Images):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item | {"pixel_values": item["pixel_values"] + torch.randn_like(item["pixel_values"])}

    found = []
    for rank in range(2):
        trainer = build_trainer(tiny_vit, tmp_path / str(rank), calibration_images=16, gates=NOVELTY)
        trainer.calibration_dataset = Noisy(64)
        torch.manual_seed(100 + rank)
        with monkeypatch.context() as patch:
            patch.setattr(DynViTTrainingArguments, "world_size", property(lambda self: 2))
            found.append(trainer.calibrate())
    assert found[0] == found[1]


def test_a_calibration_set_without_length_is_refused_before_training(tiny_vit, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from Images(4)

    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=NOVELTY)
    args = DynViTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="calibration_dataset without length cannot be drawn from, got Stream"):
        DynViTTrainer(model, args, train_dataset=Images(8), calibration_dataset=Stream())


def test_budgets_of_a_tuning_that_never_begins_are_refused(tmp_path):
    for options in ({}, {"freeze_gates_at": 0.5, "train_body": False}):
        with pytest.raises(ValueError, match=r"tuning_budgets \[0.5, 0.9\] are for the packed tuning"):
            DynViTTrainingArguments(str(tmp_path), use_cpu=True, tuning_budgets=[0.5, 0.9], **options)


def test_a_calibration_gives_the_model_its_budget_and_refuses_what_is_none(tiny_vit, tmp_path):
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=NOVELTY).eval()
    batches = [images(48)]
    for wrong in (float("nan"), 50, 0, -1):
        with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got"):
            calibrate(model, batches, wrong)
    calibrate(model, batches, 0.6)
    assert model.config.budget == 0.6
    model.save_pretrained(tmp_path)
    assert DynViTForImageClassification.from_pretrained(tmp_path).config.budget == 0.6


@pytest.mark.parametrize(
    ("aim", "cascade"), [({"budget": 0.5}, False), ({"budgets": [0.5, 0.7]}, False), ({"budget": 0.6}, True)]
)
def test_a_calibration_that_fails_changes_nothing(tiny_vit, monkeypatch, aim, cascade):
    torch.manual_seed(0)
    looks = [{"budget": 0.5, "resolution": 24}, {"budget": 0.8, "resolution": 32}] if cascade else None
    vit = tiny_vit(num_labels=3)
    model = DynViTForImageClassification.from_vit(vit, gates=NOVELTY, cascade=looks, budget=0.7).eval()
    pixels = images(48)
    calibrate(model, [pixels], 0.7) if cascade else calibrate(model, [pixels], budgets=[0.6, 0.8])
    before, was = model.config.to_dict(), model(pixels).cost
    calls, cost = [], calibration.Shifts.mean

    def fails(self, shift):
        calls.append(shift)
        if len(calls) > 3:
            raise RuntimeError("out of memory")
        return cost(self, shift)

    monkeypatch.setattr(calibration.Shifts, "mean", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(model, [pixels], **aim)
    assert model.config.to_dict() == before and torch.equal(model(pixels).cost, was)


def test_thresholds_that_16_bits_round_are_measured_as_they_are(tiny_vit, monkeypatch):
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=NOVELTY).bfloat16().eval()
    for gate in model.learned_gates():
        gate.score.bias.data.fill_(300.0)  # steps of 2
    said, batches = [], [images(48).bfloat16()]
    monkeypatch.setattr(calibration.logger, "warning", said.append)
    monkeypatch.setattr(calibration.Shifts, "nearest", lambda shifts, budget, tolerance: (-300.6, budget))
    _, cost = calibrate(model, batches, 0.6)
    assert cost == pytest.approx(model(batches[0]).cost.double().mean().item(), abs=1e-3)
    assert (abs(cost - 0.6) > 0.02) == any("thresholds in 16 bits give a cost of" in one for one in said)
