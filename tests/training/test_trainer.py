"""Claims about training: what the objective teaches, how the schedule runs, and that checkpoints lose nothing."""

from functools import partial

import pytest
import torch
from trainers import GATES, Images, assert_same, build_trainer, weights, without_labels
from transformers import Trainer, TrainingArguments

from hf_dynvit import DynViTForImageClassification, DynViTTrainingArguments
from hf_dynvit.model.gate import LearnedGate


@pytest.fixture
def make_trainer(tiny_vit):
    return partial(build_trainer, tiny_vit)


@pytest.mark.parametrize("budget", [0.6, 0.8])
def test_mean_cost_on_unseen_images_meets_the_budget_after_training(make_trainer, tmp_path, budget):
    trainer = make_trainer(tmp_path, budget=budget, max_steps=30)
    trainer.calibration_dataset = Images(256, seed=2)  # enough for thresholds to hold for other images
    trainer.train()
    assert trainer.evaluate(Images(256, seed=1))["eval_cost"] == pytest.approx(budget, abs=0.02)


def test_gates_learn_at_their_own_rate_and_without_decay(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    gates = {id(p) for m in trainer.model.modules() if isinstance(m, LearnedGate) for p in m.parameters()}
    assert {id(p) for p in groups[-1]["params"]} == gates
    assert (groups[-1]["lr"], groups[-1]["weight_decay"]) == (5e-2, 0.0)
    assert groups[0]["lr"] == 1e-3 and groups[0]["weight_decay"] == 0.1
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_the_budget_falls_linearly_over_the_ramp(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, budget=0.5, budget_ramp=0.4)
    trainer.state.max_steps = 100
    budgets = []
    for step in (0, 20, 40, 90):
        trainer.state.global_step = step
        budgets.append(trainer.schedule.step().budget)
    assert budgets == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_gates_with_an_order_may_start_at_the_budget(make_trainer, tmp_path):
    gates = [{"gate": "patch", "drop": True, "novelty": 16.0}]
    options = {"budget": 0.6, "calibrate_first": True, "budget_ramp": 0.5, "gate_learning_rate": 1e-6, "max_steps": 2}
    trainer = make_trainer(tmp_path, gates=gates, **options)
    trainer.train()
    costs = [entry["calibration_cost"] for entry in trainer.state.log_history if "calibration_cost" in entry]
    assert costs[0] == pytest.approx(0.6, abs=0.03) and trainer.schedule.budget() == 0.6


def test_the_noise_is_gone_when_the_gates_are_fixed(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, freeze_gates_at=0.5)
    trainer.state.max_steps = 100
    noises = []
    for step in (0, 25, 50, 90):
        trainer.state.global_step = step
        noises.append(trainer.schedule.step().noise)
    assert noises == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_frozen_gates_do_not_change_while_the_body_trains_packed(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, freeze_gates_at=0.5, calibration_images=0, tuning_gain=0.0)
    seen = []
    original = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        loss = original(model, inputs, **kwargs)
        seen.append((trainer.model.layout, weights(model.gates), weights(model.vit)))
        return loss

    trainer.compute_loss = spy
    trainer.train()
    assert [layout for layout, _, _ in seen] == ["masked"] * 4 + ["packed"] * 4
    assert_same(seen[4][1], seen[-1][1])
    assert any(not torch.equal(seen[4][2][name], seen[-1][2][name]) for name in seen[4][2])
    assert trainer.model.layout == "masked" and all(p.requires_grad for p in trainer.model.gates.parameters())


def test_thresholds_follow_each_tuning_budget_in_its_turn(make_trainer, tmp_path):
    budgets = [0.4, 0.6, 0.8]
    trainer = make_trainer(
        tmp_path,
        gates=GATES[:1],
        budget=0.4,
        count=512,
        per_device_train_batch_size=32,
        freeze_gates_at=0.2,
        tuning_budgets=budgets,
        tuning_gain=3.0,
        max_steps=60,
    )
    ends = []
    original = trainer.calibrate
    trainer.calibrate = lambda *of: ends.append(weights(trainer.model.gates)) or original(*of)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    for turn, budget in enumerate(budgets):
        assert sum(costs[45 + turn :: 3]) / 5 == pytest.approx(budget, abs=0.05)
    frozen, last = ends
    moved = torch.cat([(last[name] - frozen[name]).flatten() for name in last if name.endswith("bias")])
    assert moved.max() - moved.min() < 1e-5  # all gates by the same shift
    assert all(torch.equal(last[name], frozen[name]) for name in last if name.endswith("weight"))


def test_usage_per_layer_is_logged(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    assert {"eval_accuracy", "eval_accuracy_top5", "eval_cost"} <= metrics.keys()
    assert {f"eval_usage/{kind}/0" for kind in ("attention_tokens", "mlp_tokens", "heads", "attention", "mlp")} <= set(
        logged
    )


@pytest.mark.parametrize("objective", ["cost", "usage"])
def test_the_objective_lowers_the_cost(make_trainer, tmp_path, objective):
    trainer = make_trainer(tmp_path, objective=objective, max_steps=20, budget_ramp=0.0, calibration_images=0)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(costs[-3:]) < sum(costs[:3]) - 0.3


def test_distillation_pulls_towards_the_teacher(make_trainer, tiny_vit, tmp_path):
    torch.manual_seed(1)
    teacher = tiny_vit(num_labels=3)
    trainer = without_labels(make_trainer(tmp_path, gates=None, teacher=teacher, max_steps=80))
    images = trainer.train_dataset.pixels

    def distance():
        with torch.no_grad():
            return (trainer.model.eval()(images).logits.softmax(-1) - teacher(images).logits.softmax(-1)).abs().mean()

    before = distance()
    trainer.train()
    assert distance() < 0.3 * before


def test_accumulated_gradients_equal_those_of_the_large_batch(make_trainer, tiny_vit, tmp_path):
    teacher = tiny_vit(num_labels=3)
    steps = {"max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", "gates": None, "teacher": teacher, "count": 32}
    large = make_trainer(tmp_path / "a", per_device_train_batch_size=32, **steps)
    small = make_trainer(tmp_path / "b", per_device_train_batch_size=8, gradient_accumulation_steps=4, **steps)
    large.train()
    small.train()
    for (name, one), other in zip(large.model.named_parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("saved_at", [3, 4, 6])
def test_a_resumed_run_ends_with_the_same_weights(make_trainer, tmp_path, saved_at):
    options = {"freeze_gates_at": 0.5, "dropout": 0.1, "save_strategy": "steps", "save_steps": saved_at}
    options["tuning_budgets"] = [0.5, 0.7]
    straight = make_trainer(tmp_path, **options)
    straight.train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved_at}"))
    assert_same(weights(straight.model), weights(resumed.model))


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, bad=slice(0, 64, 9), count=64, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match="loss is nan at step"):
        trainer.train()
    for folder in tmp_path.glob("checkpoint-*"):
        model = DynViTForImageClassification.from_pretrained(folder)
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_empty_dataset_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="train_dataset is empty"):
        make_trainer(tmp_path, count=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "objective must be one of"),
        ({"tuning_budgets": [0.5, 1.5]}, "tuning_budgets must be in"),
        ({"budget_ramp": 1.5}, "budget_ramp must be in"),
        ({"gate_noise_end": -0.5}, "gate_noise_end must be in"),
        ({"gate_noise_start": 1.5}, "gate_noise_start must be in"),
        ({"objective": "usage", "usage_target": 1.5}, "usage_target of objective 'usage' must be a number in"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DynViTTrainingArguments(output_dir=str(tmp_path), **options)


def test_the_plain_trainer_sees_logits_alone(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=GATES)
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=model, args=args, train_dataset=Images(16), eval_dataset=Images(8))
    trainer.train()
    assert trainer.predict(Images(8)).predictions.shape == (8, 3)
