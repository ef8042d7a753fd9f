"""The published patch agent to the letter, and Q-learning by the book beside it."""

import math

import pytest
import torch
from agent_models import build
from models import images
from torch.testing import assert_close

from hf_dynvit.agents.agentvit import QNetwork
from hf_dynvit.agents.base import Moment
from hf_dynvit.agents.features import attention_signal, input_tokens
from hf_dynvit.agents.q_learning import (
    Replay,
    Transition,
    above_mean,
    agentvit_reward,
    epsilon_at,
    patch_reward,
    polyak,
    q_target,
)


def test_the_state_is_the_first_attention_averaged_over_channels(tiny_vit):
    vit, pixel_values = tiny_vit(), images(3)
    captured = []
    vit.vit.layers[0].attention.register_forward_hook(lambda _, __, out: captured.append(out[0]))
    vit(pixel_values)
    state = attention_signal(vit.vit.train(), pixel_values)
    assert_close(state, captured[0][:, 1:].mean(-1).detach(), rtol=1e-4, atol=1e-6)
    assert state.shape == (3, 16) and not state.requires_grad
    assert_close(input_tokens(vit.vit, pixel_values), vit.vit.eval().embeddings(pixel_values).detach())


def test_a_patch_is_kept_where_its_score_reaches_the_mean():
    assert above_mean(torch.tensor([1.0, 2.0, 3.0])).tolist() == [False, True, True]
    for patches in (3, 49, 196):
        assert above_mean(torch.full((patches,), 0.1)).all()


@pytest.mark.parametrize(("patches", "mean", "deviation"), [(64, 32.0, 2.31), (49, 24.5, 2.02), (196, 98.0, 4.04)])
def test_random_scores_keep_half_of_the_patches(patches, mean, deviation):
    counts = torch.stack([above_mean(torch.rand(patches)).sum() for _ in range(2000)]).float()
    assert counts.mean().item() == pytest.approx(mean, abs=0.3)
    assert counts.std().item() == pytest.approx(deviation, abs=0.2)


@pytest.mark.parametrize("desired", [2, 8, 15])
def test_the_published_agent_keeps_half_whatever_the_target(tiny_vit, desired):
    agent = build(tiny_vit(), "agentvit", desired)
    counts = [len(agent.choose(images(2), Moment(batch=0))) for _ in range(200)]
    assert sum(counts) / 200 == pytest.approx(8.0, abs=0.4) and len(set(counts)) > 3


def test_the_choice_is_one_per_batch_by_the_mean_of_the_q_values(tiny_vit):
    agent, pixel_values = build(tiny_vit(), "agentvit", epsilon_start=0.0, epsilon_end=0.0), images(5)
    q = agent.network(agent.state(pixel_values)).mean(0)
    assert_close(agent.choose(pixel_values, Moment()), (q >= q.mean()).nonzero().squeeze(1))


def test_rewards_by_hand():
    assert patch_reward(34, 64, 30) == 0.0  # ideal: 34 dropped
    assert patch_reward(17, 64, 30) == pytest.approx(-0.5) and patch_reward(51, 64, 30) == pytest.approx(-0.5)
    assert patch_reward(0, 16, 16) == 0.0 and patch_reward(3, 16, 16) == -3.0
    assert agentvit_reward(2.3, 2.3, 34, 64, 30) == pytest.approx(1.0)
    assert agentvit_reward(2.3, 1.15, 17, 64, 30) == pytest.approx(2.0 - 10.0)
    assert agentvit_reward(2.0, 1.0, 32, 64, 30, loss_weight=0.5, time_weight=1.0) == pytest.approx(1 - 2 / 34)


def test_the_q_network_has_the_published_size():
    assert sum(p.numel() for p in QNetwork(64, 64).parameters()) == 345_408


def test_epsilon():
    assert epsilon_at(0) == 1.0 and epsilon_at(39_100) == pytest.approx(0.150, abs=5e-4)
    assert sum(map(epsilon_at, range(39_100))) / 39_100 == pytest.approx(0.445, abs=1e-3)
    assert epsilon_at(20_000) == pytest.approx(0.01 + 0.99 / math.e)


def test_the_target_is_reward_plus_discounted_q_of_every_output(tiny_vit):
    agent = build(tiny_vit(), "agentvit", gamma=0.5)
    assert q_target(torch.tensor([1.0, -2.0]), torch.ones(2, 3), 0.5).tolist() == [[1.5] * 3, [-1.5] * 3]
    states, keep = torch.randn(2, 4, 16), torch.rand(16) < 0.5
    reward = torch.full((4,), 3.0)
    loss = agent.learning_loss(Transition(*states, reward))
    wanted = 3.0 + 0.5 * agent.target(states[1])
    assert_close(loss, torch.nn.functional.smooth_l1_loss(agent.network(states[0]), wanted))
    assert torch.equal(loss, agent.learning_loss(Transition(*states, reward, keep)))  # it knows no action


def test_q_learning_by_the_book_credits_the_actions_taken_alone(tiny_vit):
    agent = build(tiny_vit(), "agentvit-dqn")
    states, keep = torch.randn(2, 4, 16), torch.rand(4, 16) < 0.5
    q = agent._q(agent.network, states[0]).detach().requires_grad_()
    agent._q = lambda network, state: q if network is agent.network else torch.zeros_like(q)
    agent.learning_loss(Transition(*states, torch.full((4,), 50.0), keep)).backward()
    assert q.grad[..., 1].ne(0).equal(keep) and q.grad[..., 0].ne(0).equal(~keep)


def test_q_learning_by_the_book_keeps_where_keeping_is_better(tiny_vit):
    agent = build(tiny_vit(), "agentvit-dqn")
    agent._q = lambda network, state: torch.stack((torch.zeros(3, 4), state), -1)
    state = torch.tensor([[1.0, -1.0, 0.0, -2.0]]).expand(3, -1)
    assert agent._greedy(state).tolist() == [True, False, True, False]
    assert agent._greedy(state - 5).tolist() == [True, False, False, False]  # one at least


def test_replay_evicts_at_random_and_draws_without_repeats():
    replay = Replay(64, 8, torch.Generator().manual_seed(0))
    for number in range(200):
        rows = 3 + number % 2
        replay.push(Transition(torch.full((rows, 4), float(number)), torch.zeros(rows, 4), torch.tensor(1.0 * number)))
    assert len(replay) == 64
    numbers = [int(t.reward) for t in replay.transitions]
    assert numbers[-1] == 199 and numbers != list(range(136, 200)) and min(numbers) < 136
    batch = replay.sample()
    assert len(set(batch.reward.tolist())) == 8 and 24 <= len(batch.reward) <= 32 and batch.keep is None
    assert torch.equal(batch.reward, batch.state[:, 0])


def test_polyak_moves_a_tenth_of_the_way():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = 0.9 * one.weight + 0.1 * other.weight
    polyak(one, other, 0.1)
    assert_close(one.weight, wanted)


def test_the_schedule_of_the_published_training(tiny_vit, monkeypatch):
    agent = build(tiny_vit(), "agentvit", hidden=8, hidden2=8)
    pushed, updated = [], []
    push = agent.replay.push
    agent.state = lambda pixel_values: torch.zeros(1, 16)
    agent.replay.push = lambda transition: pushed.append(push(transition))
    monkeypatch.setattr("hf_dynvit.agents.agentvit.polyak", lambda *networks: updated.append(networks))
    outputs = type("Outputs", (), {"loss": torch.tensor(1.0)})
    for epoch in range(100):
        for number in (49, 50, *range(100, 391, 50), 391):  # all others are like 49 and 391
            moment = Moment(epoch * 391 + number - 1, number, epoch)
            agent.choose(None, moment)
            agent.observe(None, None, outputs, moment)
            agent.after_step()
    assert (len(pushed), agent.learn_steps, len(updated)) == (693, 686, 343)
    assert len(agent.replay) == 64


def test_the_evaluation_choice_of_the_published_agent_depends_on_the_batch_and_ours_does_not(tiny_vit):
    pixel_values = images(6)
    published = build(tiny_vit(), "agentvit")
    together = published.choose(pixel_values, Moment(), explore=False)
    alone = [published.choose(image[None], Moment(), explore=False) for image in pixel_values]
    assert any(not torch.equal(together, choice) for choice in alone)
    ours = build(tiny_vit(), "agentvit-plus")
    torch.nn.init.normal_(ours.scorer.score.weight)
    together = ours.choose(pixel_values, Moment(), explore=False)
    alone = torch.cat([ours.choose(image[None], Moment(), explore=False) for image in pixel_values])
    assert torch.equal(together, alone) and len(together.unique(dim=0)) > 1


def test_a_loss_of_nothing_is_a_great_reward_not_a_division_by_zero():
    assert 2.3 < agentvit_reward(2.3, 0.0, 34, 64, 30) < math.inf
