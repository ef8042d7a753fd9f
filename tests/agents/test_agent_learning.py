"""What Q-learning agents learn, whether a training is long enough for it, and how much of it was chance."""

import logging

import pytest
import torch
from agent_models import FAST, agent_trainer, build, toy
from torch.testing import assert_close

from hf_dynvit.agents.q_learning import Transition, epsilon_at, learning_steps, mean_epsilon


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_q_learning_by_the_book_ranks_the_informative_patches_first(tiny_vit, seed):
    torch.manual_seed(seed)  # other weights of the ViT and other images, too
    options = {"learn_every": 1, "silent_epochs": 0, "hidden": 64, "hidden2": 32}
    assert toy(tiny_vit(), "agentvit-dqn", seed=seed, **options) < 1.5


def test_the_value_of_a_choice_is_the_sum_of_those_of_its_actions(tiny_vit):
    agent = build(tiny_vit(), "agentvit-dqn", gamma=0.5)
    states, keep, reward = torch.randn(2, 4, 16), torch.rand(4, 16) < 0.5, torch.randn(4)
    drop, kept = agent._q(agent.network, states[0]).unbind(-1)
    value = torch.where(keep, kept, drop).sum(1)
    best = agent._q(agent.target, states[1]).amax(-1).sum(1)
    wanted = torch.nn.functional.smooth_l1_loss(value, reward + 0.5 * best)
    assert_close(agent.learning_loss(Transition(*states, reward, keep)), wanted)


def test_the_mean_of_epsilon():
    for batches, options in ((39_100, {}), (7, {}), (50, {"start": 0.9, "end": 0.2, "decay": 10})):
        wanted = sum(epsilon_at(batch, **options) for batch in range(batches)) / batches
        assert mean_epsilon(batches, **options) == pytest.approx(wanted)
    assert mean_epsilon(39_100) == pytest.approx(0.445, abs=1e-3)
    assert mean_epsilon(0) == mean_epsilon(1) == mean_epsilon(5, decay=1e20) == 1.0


@pytest.mark.parametrize(
    ("batches", "per_epoch", "wanted"),
    [(39_100, 391, 686), (4900, 49, 0), (100, 100, 0), (800, 100, 7), (950, 100, 10), (350, 100, 0)],
)
def test_how_often_the_published_agent_learns(batches, per_epoch, wanted):
    assert learning_steps(batches, per_epoch, every=50, silent_epochs=1, sample=8) == wanted


@pytest.mark.parametrize("agent", ["agentvit", "agentvit-dqn"])
def test_a_training_too_short_to_learn_says_so_and_the_report_counts(tiny_vit, tmp_path, caplog, monkeypatch, agent):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger = logging.getLogger("hf_dynvit")
    monkeypatch.setattr(logger, "propagate", True)
    said = "the agent will learn nothing in 8 batches, 8 an epoch: it is rewarded on every 50th batch"
    short = agent_trainer(tiny_vit, tmp_path / "short", agent, agent_options={})
    short.train()
    assert said in caplog.text
    report = short.agent.report()
    assert report["learn_steps"] == 0 and report["epsilon"] == pytest.approx(1.0, abs=1e-3)

    caplog.clear()
    options = {**FAST, "silent_epochs": 0}
    long = agent_trainer(tiny_vit, tmp_path / "long", agent, agent_options=options)
    long.train()
    assert "will learn nothing" not in caplog.text
    report = long.agent.report()
    assert report["learn_steps"] == long.agent.agent.learn_steps == learning_steps(8, 8, 2, 0, 2) == 3
    logged = [entry["agent/epsilon"] for entry in long.state.log_history if "agent/epsilon" in entry]
    assert report["epsilon"] == pytest.approx(sum(logged) / len(logged), abs=1e-3) and report["epsilon"] < 0.6
