"""Claims about evaluation on chosen patches: only they run, the agent's work is paid for, and nothing else changes."""

import pytest
import torch
from agent_models import LEARNING, agent_trainer, flat
from models import images
from torch.utils.flop_counter import FlopCounterMode
from trainers import assert_same
from transformers import TrainerCallback

from hf_dynvit import DynViTTrainingArguments
from hf_dynvit.agents.shelf import AGENTS
from hf_dynvit.model.cost import dense_macs
from hf_dynvit.training.training_step import TrainingClock, TrainingCost


@pytest.mark.parametrize("agent", ["agentvit-plus", "random", "center"])
def test_the_chosen_patches_are_reported_beside_all(tiny_vit, tmp_path, agent):
    both = agent_trainer(tiny_vit, tmp_path, agent, desired=6, agent_evaluation="chosen")
    alone = agent_trainer(tiny_vit, tmp_path, agent, desired=6)
    metrics, wanted = both.evaluate(), alone.evaluate()
    assert metrics["eval_accuracy"] == wanted["eval_accuracy"] and metrics["eval_cost"] == 1.0
    assert not any("chosen" in name for name in wanted)
    right, costs = [], []
    for start in (0, 16):  # the trainer's batches
        batch = [both.eval_dataset[index] for index in range(start, start + 16)]
        pixel_values = torch.stack([item["pixel_values"] for item in batch])
        patches = both.agent.evaluation_patches(pixel_values)
        with torch.no_grad():
            out = both.model.eval()(pixel_values, patches=patches, merge_patches=both.agent.agent.merges)
        right.append(out.logits.argmax(1) == torch.tensor([item["labels"] for item in batch]))
        costs.append(out.cost)
    assert metrics["eval_chosen_accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    assert metrics["eval_chosen_cost"] == pytest.approx(torch.cat(costs).mean().item() + both.agent.choice_cost)
    assert torch.cat(costs).max() < 0.6


@pytest.mark.usefixtures("counted_attention")
@pytest.mark.parametrize("agent", AGENTS)
def test_the_cost_contains_what_the_agent_computes(tiny_vit, tmp_path, monkeypatch, agent):
    def plain(query, key, value, scale):
        return (query @ key.transpose(-1, -2) * scale).softmax(-1) @ value

    monkeypatch.setattr("hf_dynvit.agents.features.F.scaled_dot_product_attention", plain)
    trainer = agent_trainer(tiny_vit, tmp_path, agent, desired=6, agent_evaluation="chosen")
    model, inputs = trainer.model.eval(), {"pixel_values": images(2), "labels": torch.tensor([0, 1])}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = trainer.agent.forward(model, inputs)
    assert counter.get_total_flops() / 2 == round(out.cost.sum().item() * dense_macs(model.config, 17, 3))
    assert (trainer.agent.choice_cost > 0) == (agent in LEARNING)


class Evaluations(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append(metrics)


def test_evaluations_during_training_have_both_and_tell_others_of_all_patches_alone(tiny_vit, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"metric_for_best_model": "chosen_loss", "greater_is_better": False, "agent_evaluation": "chosen"}
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit-plus", **options)
    evaluations = Evaluations()
    trainer.add_callback(evaluations)
    trainer.train()
    losses = [entry["eval_chosen_loss"] for entry in trainer.state.log_history if "eval_chosen_loss" in entry]
    assert len(losses) == 4 and trainer.state.best_metric == min(losses)
    assert ["eval_loss" in metrics and "eval_chosen_loss" not in metrics for metrics in evaluations.seen] == [True] * 4


@pytest.mark.parametrize("agent", LEARNING)
def test_evaluation_changes_no_state_of_the_agent(tiny_vit, tmp_path, agent):
    trainer = agent_trainer(tiny_vit, tmp_path, agent, agent_evaluation="chosen")
    trainer.train()
    before, kept = flat(trainer.agent.state_dict()), trainer.agent.report()
    trainer.evaluate()
    assert_same(before, flat(trainer.agent.state_dict()))
    assert trainer.agent.report() == kept


def test_each_of_several_sets_is_evaluated_once_on_both(tiny_vit, tmp_path):
    trainer = agent_trainer(tiny_vit, tmp_path, "center", agent_evaluation="chosen")
    trainer.eval_dataset = {"one": trainer.eval_dataset, "two": trainer.train_dataset}
    metrics = trainer.evaluate()
    names = {name for name in metrics if name.endswith("_cost")}
    assert names == {f"eval_{name}_cost" for name in ("one", "two", "one_chosen", "two_chosen")}
    logged = [name for entry in trainer.state.log_history for name in entry if name.endswith("_chosen_cost")]
    assert sorted(logged) == ["eval_one_chosen_cost", "eval_two_chosen_cost"]


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs an agent to choose: name one, got agent 'none'"):
        DynViTTrainingArguments(str(tmp_path), agent_evaluation="chosen")
    with pytest.raises(ValueError, match=r"agent_evaluation must be one of \('all', 'chosen'\), got 'some'"):
        DynViTTrainingArguments(str(tmp_path), agent_evaluation="some")


class Slow(TrainerCallback):
    """Evaluation takes 1000 seconds a batch by this clock, nothing else takes any time but a second per step."""

    now = 0.0

    def on_step_end(self, *args, **kwargs):
        self.now += 1.0

    def on_prediction_step(self, *args, **kwargs):
        self.now += 1000.0


@pytest.mark.parametrize("evaluation", ["all", "chosen"])
def test_the_clock_of_training_stands_still_during_both_evaluations(tiny_vit, tmp_path, monkeypatch, evaluation):
    options = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 8, "agent_evaluation": evaluation}
    trainer, slow, clock = agent_trainer(tiny_vit, tmp_path, "random", **options), Slow(), TrainingClock()
    monkeypatch.setattr("hf_dynvit.training.training_step.seconds_of_work", lambda device: slow.now)
    trainer.add_callback(slow)
    trainer.add_callback(clock)
    trainer.train()
    assert slow.now > 1000.0 and clock.seconds == 8.0
    assert [(point["step"], point["seconds"]) for point in clock.points] == [(3, 3.0), (6, 6.0), (8, 8.0)]


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_the_cost_of_a_training_is_that_of_all_its_steps_logged_or_not(tiny_vit, tmp_path, logging_steps):
    options = {"max_steps": 8, "logging_steps": logging_steps, "agent_options": {"return_fraction": 0.5}}
    trainer = agent_trainer(tiny_vit, tmp_path, "random", **options)
    cost, seen = TrainingCost(trainer), []
    assert cost.mean() is None
    trainer.add_callback(cost)
    trainer.model.register_forward_hook(
        lambda model, _, out: seen.append(out.cost.mean().item() if model.training else None)
    )
    trainer.train()
    seen = [one for one in seen if one is not None]
    assert len(set(seen)) > 1 and cost.mean() == pytest.approx(sum(seen) / len(seen))
