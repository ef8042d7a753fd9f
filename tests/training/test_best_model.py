"""The best model is the best at the budget: evaluations at another cost do not count, and without a budget it is refused."""

import pytest
from trainers import GATES, assert_same, build_trainer, weights

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.training import trainer as training


STEPS = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
BEST = {**STEPS, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "calibration_images": 0}


def evaluations(trainer, costs, losses):
    """Makes the trainer's evaluations give these."""
    found, evaluate = iter(zip(costs, losses, strict=True)), trainer.evaluate

    def told(*args, **kwargs):
        cost, loss = next(found)
        return evaluate(*args, **kwargs) | {"eval_cost": cost, "eval_loss": loss}

    trainer.evaluate = told


def test_only_evaluations_at_the_budget_are_compared(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, budget=0.5, max_steps=8, **BEST)
    evaluations(trainer, costs=[1.0, 0.51, 0.485, 0.53], losses=[0.1, 0.4, 0.3, 0.2])
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6") and trainer.state.best_metric == 0.3
    best = DynViTForImageClassification.from_pretrained(tmp_path / "checkpoint-6")
    assert_same(weights(trainer.model), weights(best))


def test_without_one_at_the_budget_the_last_weights_stay_and_it_is_said(tiny_vit, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(training.logger, "warning", said.append)
    trainer = build_trainer(tiny_vit, tmp_path, budget=0.5, max_steps=4, **BEST)
    evaluations(trainer, costs=[1.0, 0.9], losses=[0.1, 0.2])
    trainer.train()
    assert trainer.state.best_model_checkpoint is None and "no evaluation found the cost at the budget" in said[-1]
    last = DynViTForImageClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert_same(weights(trainer.model), weights(last))


def test_checkpoints_of_the_best_alone_may_be_none_and_it_is_said(tiny_vit, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(training.logger, "warning", said.append)
    options = {**BEST, "load_best_model_at_end": False, "save_strategy": "best"}
    trainer = build_trainer(tiny_vit, tmp_path, budget=0.5, max_steps=4, **options)
    evaluations(trainer, costs=[1.0, 0.9], losses=[0.1, 0.2])
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    assert said[-1].startswith("save_strategy") and "no evaluation found the cost at the budget" in said[-1]


def test_without_gates_all_evaluations_are_compared(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, gates=None, max_steps=4, **BEST)
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None


def test_metrics_without_cost_cannot_be_compared(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, max_steps=2, **BEST)
    trainer.compute_metrics = None
    with pytest.raises(ValueError, match="compute_metrics must give the mean 'cost'"):
        trainer.train()
    trainer = build_trainer(tiny_vit, tmp_path / "uncompared", max_steps=2, **STEPS)
    trainer.compute_metrics = None
    trainer.train()


@pytest.mark.parametrize("options", [BEST, {**BEST, "load_best_model_at_end": False, "save_strategy": "best"}])
@pytest.mark.parametrize("objective", [{"objective": "usage"}, {"objective": "reinforce", "price_gain": 0.0}])
def test_without_a_budget_nothing_can_be_compared(tiny_vit, tmp_path, options, objective):
    gates = [{"gate": "block", "value_width": 4}] if objective["objective"] == "reinforce" else GATES
    with pytest.raises(ValueError, match="would compare checkpoints at different costs"):
        build_trainer(tiny_vit, tmp_path, gates=gates, **options, **objective)
