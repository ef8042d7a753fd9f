"""Policies in the trainer: what they learn, what stays as it is, identical resume, and what is refused."""

import pytest
import torch
from models import images
from torch.testing import assert_close
from trainers import assert_same, build_trainer, weights

from hf_dynvit.model.gate import draw
from hf_dynvit.objectives.policy_gradient import advantages, policy_loss
from hf_dynvit.training.arguments import DynViTTrainingArguments


BLOCKS = [{"gate": "block", "layers": [1, 2], "value_width": 8}]


def policy_trainer(tiny_vit, folder, gates=BLOCKS, **options):
    return build_trainer(
        lambda **fields: tiny_vit(3, **fields), folder, gates=gates, **{"objective": "reinforce"} | options
    )


def test_a_bandit_with_a_known_optimum_is_learned():
    logits = torch.zeros(1, 4, requires_grad=True)
    best = torch.tensor([1.0, 0.0, 1.0, 0.0])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        keep, log_prob, _ = draw(logits.expand(32, -1))
        reward = (keep == best.bool()).float().mean(1)
        optimizer.zero_grad()
        policy_loss(log_prob[None], advantages(reward[None], 0.0)).backward()
        optimizer.step()
    assert torch.equal(logits.detach()[0] > 0, best.bool()) and logits.detach().abs().min() > 1


def test_the_price_brings_the_cost_to_the_budget(tiny_vit, tmp_path):
    trainer = policy_trainer(
        tiny_vit,
        tmp_path,
        budget=0.6,
        max_steps=60,
        price_gain=20.0,
        calibration_images=0,
        curriculum=0.0,
        gate_learning_rate=2e-2,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "price" in entry]
    assert sum(entry["cost"] for entry in logs[-10:]) / 10 == pytest.approx(0.6, abs=0.12)
    assert {"price", "reward", "entropy", "earned"} <= logs[-1].keys()


def test_a_policy_learns_to_skip_what_only_costs(tiny_vit, tmp_path):
    trainer = policy_trainer(tiny_vit, tmp_path, max_steps=60, price=5.0, price_gain=0.0, calibration_images=0)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(costs[-5:]) / 5 < sum(costs[:5]) / 5 - 0.3


@pytest.mark.parametrize("baseline", ["value", "self-critical", "none"])
def test_without_train_body_the_backbone_stays_bit_identical(tiny_vit, tmp_path, baseline):
    trainer = policy_trainer(tiny_vit, tmp_path, train_body=False, baseline=baseline)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("gates.") for name in changed)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize("cost_weights", ["uniform", "depth", "latency"])
@pytest.mark.parametrize("returns", ["to-go", "dynavit"])
def test_every_weighting_and_return_trains(tiny_vit, tmp_path, cost_weights, returns):
    options = {"cost_weights": cost_weights, "returns": returns, "discount": 0.9, "max_steps": 3}
    trainer = policy_trainer(tiny_vit, tmp_path, **options)
    before = weights(trainer.model.gates)
    trainer.train()
    after = weights(trainer.model.gates)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("score.weight"))


def test_patches_heads_and_blocks_learn_by_the_same_objective(tiny_vit, tmp_path):
    gates = [
        {"gate": "patch", "drop": True, "merge": True, "layers": [1]},
        {"gate": "head", "layers": [1, 2]},
        {"gate": "block", "layers": [1, 2]},
    ]
    trainer = policy_trainer(tiny_vit, tmp_path, gates=gates, baseline="self-critical", calibration_images=0)
    before = weights(trainer.model.gates)
    trainer.train()
    after = weights(trainer.model.gates)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("score.weight"))


@pytest.mark.parametrize("saved_at", [3, 5])
def test_a_resumed_policy_ends_with_the_same_weights(tiny_vit, tmp_path, saved_at):
    options = {"dropout": 0.1, "save_strategy": "steps", "save_steps": saved_at, "freeze_gates_at": 0.6}
    straight = policy_trainer(tiny_vit, tmp_path, **options)
    straight.train()
    resumed = policy_trainer(tiny_vit, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved_at}"))
    assert_same(weights(straight.model), weights(resumed.model))


def test_training_runs_packed(tiny_vit, tmp_path):
    trainer = policy_trainer(tiny_vit, tmp_path, max_steps=2)
    seen = []
    trainer.model.register_forward_hook(lambda model, *_: seen.append((model.training, model.layout)))
    trainer.train()
    assert seen[:2] == [(True, "packed")] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "smile"}, "reward of objective 'reinforce' must be one of"),
        ({"reward": "blockdrop"}, "reward of objective 'reinforce' must be one of"),
        ({"returns": "late"}, "returns of objective 'reinforce' must be one of"),
        ({"baseline": "oracle"}, "baseline of objective 'reinforce' must be one of"),
        ({"probability_bound": 0.5}, "probability_bound must be in"),
    ],
)
def test_bad_policy_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DynViTTrainingArguments(output_dir=str(tmp_path), **options)


def test_a_value_baseline_needs_value_networks(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="value_width"):
        policy_trainer(tiny_vit, tmp_path, gates=[{"gate": "block"}])
    with pytest.raises(ValueError, match="needs gates that learn"):
        policy_trainer(tiny_vit, tmp_path, gates=None, train_body=False)


class Wrapped(torch.nn.Module):
    """A model as DistributedDataParallel hands it out: it has no configuration."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, *args, **options):
        return self.module(*args, **options)


def test_the_greedy_baseline_knows_wrapped_models_and_soft_labels(tiny_vit, tmp_path):
    trainer = policy_trainer(tiny_vit, tmp_path, baseline="self-critical")
    trainer.model.config.problem_type = "single_label_classification"
    trainer.task_loss.replaces = True
    model, inputs = (
        Wrapped(trainer.model).train(),
        {"pixel_values": images(2), "labels": torch.tensor([[0.7, 0.3, 0.0]] * 2)},
    )
    rewards = trainer.objective._greedy_rewards(model, inputs, 0.0)
    with torch.no_grad():
        best = trainer.model.eval()(inputs["pixel_values"], gating="threshold").logits.argmax(1)
    assert_close(rewards, inputs["labels"].gather(1, best[:, None]).squeeze(1))
