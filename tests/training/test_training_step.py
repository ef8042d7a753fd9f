"""Claims about a step outside of a training: it is the trainer's, and its kinds are what they are called."""

import os
import subprocess
import sys

import pytest
import torch
from agent_models import LEARNING, agent_trainer, flat
from models import images
from trainers import assert_same, weights

from hf_dynvit.training.training_step import TrainingStep


def batch():
    return {"pixel_values": images(8, generator=torch.Generator().manual_seed(0)), "labels": torch.arange(8) % 3}


@pytest.mark.parametrize("agent", ["none", "random", "agentvit-plus"])
def test_a_step_has_the_gradients_of_the_trainers_own(tiny_vit, tmp_path, agent):
    trainers = [agent_trainer(tiny_vit, tmp_path, agent, desired=6, agent_options={}) for _ in range(2)]
    trainers[0].current_gradient_accumulation_steps = 1  # set where a training begins
    trainers[0].training_step(trainers[0].model, batch())
    TrainingStep(trainers[1], batch()).ordinary()
    one, other = ({name: p.grad for name, p in t.model.named_parameters() if p.grad is not None} for t in trainers)
    assert_same(one, other)
    assert len(one) > 10


def learned(step):
    """What the agent's networks have learned: its weights, without counters and optimiser."""
    state = flat(step.agent.state_dict())
    return {name: value for name, value in state.items() if "/agent/scorer" in name or "/agent/network" in name}


@pytest.mark.parametrize("agent", LEARNING)
def test_an_agent_learns_in_learning_steps_alone(tiny_vit, tmp_path, agent):
    step = TrainingStep(agent_trainer(tiny_vit, tmp_path, agent), batch())
    before, body = learned(step), weights(step.trainer.model)
    step.ordinary()
    assert_same(before, learned(step))
    assert any(not torch.equal(body[name], value) for name, value in weights(step.trainer.model).items())
    step.learning()
    assert any(not torch.equal(before[name], value) for name, value in learned(step).items())
    assert set(step.calls()) == {"ordinary", "learning"} and step.learn_every == 2


def test_choices_are_those_late_in_training(tiny_vit, tmp_path):
    step = TrainingStep(agent_trainer(tiny_vit, tmp_path, "agentvit"), batch())
    step.agent.logs()
    step.ordinary()
    assert step.agent.logs()["agent/epsilon"] == pytest.approx(0.01)


def test_the_mean_counts_each_kind_as_often_as_it_is_taken(tiny_vit, tmp_path):
    step = TrainingStep(agent_trainer(tiny_vit, tmp_path, "agentvit-plus", agent_options={"learn_every": 5}), batch())
    assert step.mean({"ordinary": 10.0, "learning": 20.0}) == pytest.approx(12.0)
    rule = TrainingStep(agent_trainer(tiny_vit, tmp_path, "random"), batch())
    assert set(rule.calls()) == {"ordinary"} and rule.mean({"ordinary": 10.0}) == 10.0


def test_fewer_patches_hold_less_memory(tiny_vit, tmp_path):
    peaks = [
        TrainingStep(agent_trainer(tiny_vit, tmp_path, agent, desired=4), batch()).peak_mib()
        for agent in ("none", "random")
    ]
    assert 0 < peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize(("given", "kept"), [({}, "8192"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}, "16")])
def test_kernels_of_16_bits_are_kept_for_more_lengths_than_by_default(given, kept):
    bare = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    code = "import os, hf_dynvit.training; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    shown = subprocess.run([sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == kept
