"""Claims about the options of agentvit-plus: what its scorer reads, what it is paid for, and what it leaves to chance."""

import pytest
import torch
from agent_models import build, toy
from models import images
from torch.testing import assert_close

from hf_dynvit.agents.agentvit_plus import SubsetPolicy, draw_order, draw_with_rest
from hf_dynvit.agents.base import Moment
from hf_dynvit.agents.features import patch_features, patch_places, patch_statistics, pixel_novelty
from hf_dynvit.objectives.options import parse_options


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "los"}, r"must be one of \('probability', 'loss'\), got 'los'"),
        ({"statistics": 1}, "statistics of agent 'x' must be true or false, got 1"),
        ({"explore_share": 1.5}, r"explore_share of agent 'x' must be a number in \[0, 1\], got 1.5"),
        ({"return_fraction": True}, r"return_fraction of agent 'x' must be a number in \[0, 1\], got True"),
        ({"learning_rate": float("inf")}, "must be a number of at least 0, got inf"),
        ({"hidden": "64"}, "must be a whole number of at least 0, got '64'"),
        ({"novelty": -1.0}, "novelty of agent 'x' must be a number of at least 0, got -1.0"),
        ({"learn_every": 0}, "learn_every of agent 'x' must be a whole number of at least 1, got 0"),
    ],
)
def test_values_that_an_option_cannot_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parse_options("agent 'x'", SubsetPolicy.Options, options)


def test_a_return_over_the_whole_training_is_progressive(tiny_vit):
    agents = build(tiny_vit(), "agentvit-plus", 5, return_fraction=1.0), build(tiny_vit(), "progressive", 5)
    for progress in (0.0, 0.1, 0.5, 0.93):
        ours, rule = (agent.choose(images(2), Moment(progress=progress)) for agent in agents)
        assert ours.shape == rule.shape and ours.shape[1] == round(5 + 11 * progress)
    assert agents[0].choose(images(2), Moment(progress=1.0)) is None


# ---------------------------------------------------------------------------------------------- reward


def test_the_loss_as_reward_is_the_cross_entropy_that_a_choice_saves(tiny_vit):
    logits, labels = torch.randn(2, 6, 5), torch.arange(6) % 5
    agent = build(tiny_vit(), "agentvit-plus", reward="loss")
    rewards = [agent._reward(one, labels) for one in logits]
    losses = [torch.nn.functional.cross_entropy(one, labels) for one in logits]
    assert_close((rewards[0] - rewards[1]).mean(), losses[1] - losses[0])
    probability = build(tiny_vit(), "agentvit-plus")._reward(logits[0], labels)
    assert_close(probability, logits[0].softmax(1)[torch.arange(6), labels])


def test_the_loss_as_reward_teaches_as_well(tiny_vit):
    assert toy(tiny_vit(), "agentvit-plus", learn_every=1, learning_rate=1e-2, reward="loss") == 1.0


# ---------------------------------------------------------------------------------------------- chance


def test_the_rest_is_drawn_uniformly_and_no_patch_twice():
    logits = torch.tensor([[30.0, 20.0, 10.0, 0.0, 0.0, 0.0]]).expand(6000, -1)
    order = draw_with_rest(logits, 4, 2, generator())
    assert (order.sort(1).values.diff() > 0).all()
    assert (order[:, :2] == torch.tensor([0, 1])).float().mean() > 0.99
    shares = torch.bincount(order[:, 2:].flatten(), minlength=6) / 6000
    assert_close(shares, torch.tensor([0.0, 0.0, 0.5, 0.5, 0.5, 0.5]), rtol=0, atol=0.03)


def test_without_a_share_to_explore_all_is_drawn_by_score():
    logits = torch.randn(4, 9)
    assert torch.equal(draw_with_rest(logits, 5, 5, generator()), draw_order(logits, 5, generator()))


def test_a_share_to_explore_keeps_patches_in_training_that_the_scores_would_never_take(tiny_vit):
    kept = {}
    for share in (0.0, 0.5):
        agent = build(tiny_vit(), "agentvit-plus", 6, explore_share=share)
        agent.logits = lambda features: -40.0 * torch.arange(16.0).expand(len(features), -1)
        kept[share] = agent.choose(images(200), Moment())
        assert (agent.choose(images(3), Moment(), explore=False) == torch.arange(6)).all()  # the best alone
    assert kept[0.0].max() == 5 and kept[0.5].shape == (200, 6)
    shares = torch.bincount(kept[0.5].flatten(), minlength=16) / 200
    assert (shares[:3] == 1).all() and (shares[3:] > 0.1).all()


def test_chance_gets_no_credit_and_does_not_spoil_what_is_learned(tiny_vit, monkeypatch):
    credited = set()
    from hf_dynvit.agents import agentvit_plus as agent_policy

    original = agent_policy.order_log_prob
    monkeypatch.setattr(
        agent_policy, "order_log_prob", lambda logits, order: credited.add(order.shape[1]) or original(logits, order)
    )
    assert toy(tiny_vit(), "agentvit-plus", learn_every=1, learning_rate=1e-2, explore_share=0.5) == 1.0
    assert 3 in credited and 6 not in credited  # of 6, and of ever more towards the end


# ---------------------------------------------------------------------------------------------- what the scorer reads


def test_statistics_by_hand(tiny_vit):
    grid = build(tiny_vit(), "agentvit-plus").grid
    pixel_values = torch.zeros(1, 3, 32, 32)
    pixel_values[:, :, 8:16, 8:16] = 2.0  # patch 5: bright and flat
    pixel_values[:, 0, ::2, 24:] = 1.0  # patches 3, 7, 11, 15: stripes
    brightness, contrast = patch_statistics(pixel_values, grid)[0].unbind(1)
    assert brightness.argmax() == 5 and contrast.topk(4).indices.sort().values.tolist() == [3, 7, 11, 15]
    assert_close(contrast[5], contrast[0])  # flat is flat, however bright
    for values in (brightness, contrast):
        assert_close(torch.stack((values.mean(), values.std(correction=0))), torch.tensor([0.0, 1.0]))
    assert not patch_statistics(torch.ones(1, 3, 32, 32), grid).any()  # all alike: nothing to tell them apart


def test_places_by_hand(tiny_vit):
    places = patch_places(build(tiny_vit(), "agentvit-plus").grid)
    assert places.shape == (16, 3)
    assert places[0].tolist() == [-0.75, -0.75, 1.125] and places[6].tolist() == [-0.25, 0.25, 0.125]


def test_the_token_is_always_read_and_the_rest_on_request(tiny_vit):
    grid, tokens = build(tiny_vit(), "agentvit-plus").grid, torch.randn(2, 16, 32)
    pixel_values = images(2)
    for statistics, position, width in ((False, False, 32), (True, False, 34), (False, True, 35), (True, True, 37)):
        features = patch_features(tokens, pixel_values, grid, statistics, position)
        assert features.shape == (2, 16, width)
        assert_close(features[..., :32], torch.nn.functional.layer_norm(tokens, (32,)))
        agent = build(tiny_vit(), "agentvit-plus", statistics=statistics, position=position)
        assert agent.logits(agent.features(pixel_values)).shape == (2, 16)


class Noisy(torch.nn.Module):
    """A made-up classifier whose label's probability is the share of an image's noisy patches that it is given."""

    def __init__(self, model):
        super().__init__()
        self.vit, self.config = model.vit, model.config

    def forward(self, pixel_values, patches, merge_patches=False):
        noisy = pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).std(-1).mean(1).flatten(1) > 0.2
        p = 0.1 + 0.8 * noisy.gather(1, patches).float().mean(1)
        return type("Outputs", (), {"logits": torch.stack((p, 1 - p), 1).log()})


def test_contrast_is_found_sooner_by_a_linear_scorer_that_reads_it(tiny_vit):
    """The noise is another in each image: tokens, which are linear in the pixels, show little of it."""

    def drawn(batch):
        places = torch.rand(batch, 16).argsort(1)[:, :4]
        noisy = torch.zeros(batch, 16).scatter_(1, places, 1.0)
        amplitude = noisy.unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return amplitude * images(batch, channels=1).sign().expand(-1, 3, -1, -1), noisy

    def found(**options):
        """Noisy patches among the 4 that the agent holds best after learning."""
        agent = build(tiny_vit(), "agentvit-plus", 4, hidden=0, learn_every=1, learning_rate=0.03, **options)
        agent.model = classifier = Noisy(agent.model)
        for batch in range(60):
            pixel_values, _ = drawn(32)
            patches = agent.choose(pixel_values, Moment(batch))
            agent.observe(pixel_values, torch.zeros(32).long(), classifier(pixel_values, patches), Moment(batch))
        pixel_values, noisy = drawn(64)
        return noisy.gather(1, agent.choose(pixel_values, Moment(), explore=False)).sum(1).mean().item()

    assert found(statistics=True) > 3.5 > found()


# ------------------------------------------------------------------------------------------------ novelty as a prior


def test_an_empty_background_is_new_once(tiny_vit):
    grid = build(tiny_vit(), "agentvit-plus").grid
    torch.manual_seed(0)
    pixel_values = torch.full((1, 3, 32, 32), -1.0)
    pixel_values[:, :, 8:24, 8:24] = torch.randn(3, 16, 16)  # patches 5, 6, 9, 10
    new = pixel_novelty(pixel_values, grid)[0]
    assert (new > 0.5).nonzero().flatten().tolist() == [0, 5, 6, 9, 10]
    assert (pixel_novelty(torch.full((1, 3, 32, 32), 0.3), grid) > 0.5).nonzero()[:, 1].tolist() == [0]


def test_a_fresh_agent_keeps_what_is_new(tiny_vit):
    agent = build(tiny_vit(), "agentvit-plus", 5, novelty=100)  # as a command line gives it
    pixel_values = torch.full((2, 3, 32, 32), -1.0)
    pixel_values[:, :, 8:24, 8:24] = torch.randn(2, 3, 16, 16)
    assert agent.choose(pixel_values, Moment(0)).tolist() == [[0, 5, 6, 9, 10]] * 2
    assert agent.scorer.novelty.item() == 100.0 and agent.scorer.novelty.requires_grad  # learned from there
