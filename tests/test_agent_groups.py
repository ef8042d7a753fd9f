"""Claims about images that keep different numbers of patches: the mean is as asked, and groups change nothing else."""

import pytest
import torch
from models import images
from test_agent import agent_trainer, build, toy
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.agent_base import Moment
from hf_dynvit.agent_groups import Group, group_by_need, run_groups


def test_groups_are_by_need_and_keep_its_mean():
    need = torch.tensor([9, 2, 16, 1, 8, 15])
    groups = group_by_need(need, 3, 15)
    assert [(part.tolist(), count) for part, count in groups] == [([3, 1], 2), ([4, 0], 8), ([5, 2], 15)]
    assert [count for _, count in group_by_need(torch.zeros(4, dtype=torch.int64), 2, 15)] == [1, 1]
    assert len(group_by_need(need[:1], 3, 15)) == 1


@pytest.mark.parametrize("merge", [False, True])
def test_a_batch_in_groups_is_that_of_its_images_alone(tiny_vit, merge):
    model, pixel_values = DynViTForImageClassification.from_vit(tiny_vit()), images(5)
    labels = torch.tensor([0, 1, 2, 1, 0])
    groups = [
        Group(torch.tensor([3, 0]), torch.rand(2, 16).argsort(1)[:, :4]),
        Group(torch.tensor([1, 4, 2]), torch.rand(3, 16).argsort(1)[:, :9]),
    ]
    inputs = {"pixel_values": pixel_values, "labels": labels}
    out = run_groups(model, inputs, groups, merge_patches=merge)
    losses = []
    for group in groups:
        for image, patches in zip(group.images, group.patches, strict=True):
            one = slice(image, image + 1)
            alone = model(pixel_values[one], labels=labels[one], patches=patches, merge_patches=merge)
            assert_close(out.logits[one], alone.logits, rtol=0, atol=1e-5)
            assert_close(out.cost[one], alone.cost)
            losses.append(alone.loss)
    assert_close(out.loss, torch.stack(losses).mean())
    assert run_groups(model, {"pixel_values": pixel_values}, groups).loss is None


def plain_and_busy():
    """Two images of one colour before two of noise."""
    pixel_values = images(4)
    pixel_values[:2] = 0.5 * torch.arange(2).view(2, 1, 1, 1)
    return pixel_values


def test_busy_images_keep_more_and_the_mean_is_as_asked(tiny_vit):
    agent = build(tiny_vit(), "agentvit-plus", 6, groups=2, return_fraction=0.0)
    few, many = agent.choose(plain_and_busy(), Moment())
    assert sorted(few.images.tolist()) == [0, 1] and sorted(many.images.tolist()) == [2, 3]
    assert few.patches.shape == (2, 1) and many.patches.shape == (2, 11)
    assert (many.patches.diff() > 0).all()
    assert agent.choose(plain_and_busy(), Moment(), explore=False).shape == (4, 6)  # each alone, whatever the others
    nearly_all = agent._counts(agent.features(images(4)), 15)
    assert all(count <= 15 for _, count in nearly_all)  # a draw of all would have no gradient


def test_groups_learn_as_well(tiny_vit):
    assert toy(tiny_vit(), "agentvit-plus", learn_every=1, learning_rate=1e-2, novelty=1e-3, groups=2) == 1.0


def test_a_training_in_groups_counts_what_it_kept(tiny_vit, tmp_path):
    options = {"groups": 2, "learn_every": 2, "return_fraction": 0.0}
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit-plus", desired=6, agent_options=options)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(abs(entry["agent/kept"] - 6) <= 1 for entry in logged)
    assert any("agent/reward" in entry for entry in logged) and logged[0]["cost"] < 0.8


@pytest.mark.parametrize("options", [{"groups": 0}, {"groups": 2, "novelty": 0}])
def test_groups_that_make_no_sense_are_refused(tiny_vit, options):
    with pytest.raises(ValueError, match="groups of an agent must be at least 1"):
        build(tiny_vit(), "agentvit-plus", **options)
