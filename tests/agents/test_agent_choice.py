"""Which patches are kept: exact numbers by ours and by the rules, and credit where it is due."""

import pytest
import torch
from agent_models import build, toy
from models import images
from torch.testing import assert_close

from hf_dynvit.agents.agentvit_plus import draw_order, order_log_prob, pair_loss
from hf_dynvit.agents.base import Moment, kept_count


def test_the_probability_of_an_order_is_that_of_drawing_without_replacement():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64)
    p = logits.softmax(1)[0]
    log_prob = order_log_prob(logits, torch.tensor([[2, 0]]))
    assert log_prob.exp().item() == pytest.approx((p[2] * p[0] / (1 - p[2])).item())
    orders = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    orders = orders[orders[:, 0] != orders[:, 1]]
    assert order_log_prob(logits.expand(12, -1), orders).exp().sum().item() == pytest.approx(1.0)
    drawn = draw_order(logits.float().expand(20_000, -1), 2, torch.Generator().manual_seed(0))
    share = (drawn == torch.tensor([2, 0])).all(1).float().mean().item()
    assert share == pytest.approx(log_prob.exp().item(), abs=0.01)


def test_the_expected_gradient_of_a_pair_is_that_of_the_expected_reward():
    logits = torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64, requires_grad=True)
    orders = [torch.tensor([[i, j]]) for i in range(3) for j in range(3) if i != j]
    log_probs = [order_log_prob(logits, order) for order in orders]
    rewards = [torch.tensor([float(order[0, 0] ** 2 + order[0, 1])]) for order in orders]
    exact = sum(lp.exp() * reward for lp, reward in zip(log_probs, rewards, strict=True)).sum()
    estimate = sum(
        -lp1.exp().detach() * lp2.exp().detach() * pair_loss(lp1, lp2, r1, r2)
        for lp1, r1 in zip(log_probs, rewards, strict=True)
        for lp2, r2 in zip(log_probs, rewards, strict=True)
    ).sum()
    assert_close(*(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (estimate, exact)))


@pytest.mark.parametrize("name", ["agentvit-plus", "random", "fixed", "center", "progressive"])
def test_exactly_the_wanted_patches_are_kept(tiny_vit, name):
    agent = build(tiny_vit(), name, desired=5)
    patches = agent.choose(images(4), Moment())
    assert patches.shape[-1] == 5 and (patches.sort().values.diff() > 0).all()
    assert patches.ndim == (1 if name in ("fixed", "center") else 2)


def test_rules(tiny_vit):
    center = build(tiny_vit(), "center", desired=4).choose(images(2), Moment())
    assert sorted(center.tolist()) == [5, 6, 9, 10]
    fixed = build(tiny_vit(), "fixed")
    assert torch.equal(fixed.choose(images(2), Moment()), fixed.choose(images(3), Moment(batch=7)))
    assert not torch.equal(
        fixed.choose(images(2), Moment()), build(tiny_vit(), "fixed", seed=1).choose(images(2), Moment())
    )
    random = build(tiny_vit(), "random").choose(images(2), Moment())
    assert not torch.equal(*(row.sort().values for row in random))


def test_the_number_of_patches_returns_to_all():
    counts = [kept_count(progress, 4, 16, 0.5) for progress in (0.0, 0.3, 0.5, 0.75, 1.0)]
    assert counts == [4, 4, 4, 10, 16]
    assert kept_count(0.99, 4, 16, 0.0) == 4 and kept_count(0.5, 4, 16, 1.0) == 10


def test_ours_ranks_the_informative_patches_first(tiny_vit):
    assert toy(tiny_vit(), "agentvit-plus", learn_every=1, learning_rate=1e-2, return_fraction=0.0) == 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_agent_does_not(tiny_vit, seed):
    options = {"learn_every": 1, "silent_epochs": 0, "hidden": 32, "hidden2": 32, "epsilon_end": 1.0}
    assert toy(tiny_vit(), "agentvit", seed=seed, **options) > 2.0
