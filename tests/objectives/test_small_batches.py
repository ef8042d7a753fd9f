"""Policies learn from batches of one image, too: compared with running means, where there are no others to compare with."""

import pytest
import torch
from trainers import assert_same, build_trainer, weights

from hf_dynvit.objectives.running_means import RunningMoments


BLOCKS = [{"gate": "block", "layers": [1, 2], "value_width": 8}]


def policy_trainer(tiny_vit, folder, **options):
    options = {"objective": "reinforce", "calibration_images": 0, "gates": BLOCKS} | options
    return build_trainer(lambda **fields: tiny_vit(3, **fields), folder, **options)


def moved(trainer):
    before = weights(trainer.model.gates)
    trainer.train()
    after = weights(trainer.model.gates)
    return min((after[name] - before[name]).abs().max() for name in before if name.endswith("score.weight"))


@pytest.mark.parametrize("accumulated", [1, 16])
@pytest.mark.parametrize("baseline", ["value", "self-critical", "none"])
def test_scores_move_at_one_image_per_device(tiny_vit, tmp_path, baseline, accumulated):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulated, "baseline": baseline}
    # Bounded, so that a draw can differ from what the threshold decides, which the self-critical baseline compares with.
    steps = {"max_steps": 8 if accumulated == 1 else 3, "entropy_weight": 0.0, "probability_bound": 0.7}
    assert moved(policy_trainer(tiny_vit, tmp_path, **options, **steps)) > 1e-2


def test_one_image_at_a_time_learns_to_skip_what_only_costs(tiny_vit, tmp_path):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "price": 5.0, "price_gain": 0.0}
    trainer = policy_trainer(tiny_vit, tmp_path, max_steps=15, count=240, **options)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(costs[-3:]) / 3 < sum(costs[:2]) / 2 - 0.3


def test_the_price_of_one_image_is_that_of_the_mean_cost(tiny_vit, tmp_path):
    trainer = policy_trainer(tiny_vit, tmp_path, budget=0.6, budget_ramp=0.0, price=0.1, price_gain=2.0)
    policy = trainer.objective
    assert policy.price(torch.tensor([0.9]), 0.6).item() == pytest.approx(0.1)  # nothing to compare with yet
    policy.moments().update(torch.zeros(1, 4), torch.tensor([0.6, 0.7, 0.8, 0.7]), [1])
    assert policy.price(torch.tensor([0.9]), 0.6).item() == pytest.approx(0.1 + 2 * 0.1)
    assert policy.price(torch.tensor([0.9, 0.5]), 0.6).item() == pytest.approx(0.1 + 2 * 0.1)
    assert policy.price(torch.tensor([0.9, 0.7]), 0.6).item() == pytest.approx(0.1 + 2 * 0.2)


def test_batches_of_sixteen_do_not_read_the_running_means(tiny_vit, tmp_path, monkeypatch):
    ends = []
    for _ in range(2):
        trainer = policy_trainer(tiny_vit, tmp_path / str(len(ends)), per_device_train_batch_size=16, max_steps=4)
        trainer.train()
        ends.append(weights(trainer.model))
        monkeypatch.setattr(RunningMoments, "update", lambda *_: None)
        monkeypatch.setattr(RunningMoments, "normalised", None)
        monkeypatch.setattr(RunningMoments, "distance", None)
    assert_same(*ends)


def test_a_resumed_policy_of_single_images_ends_with_the_same_weights(tiny_vit, tmp_path):
    options = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 5}
    straight = policy_trainer(tiny_vit, tmp_path, **options)
    straight.train()
    resumed = policy_trainer(tiny_vit, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(weights(straight.model), weights(resumed.model))


def test_running_means_are_those_of_the_images_and_go_through_json():
    moments, other = RunningMoments(3, "cpu"), RunningMoments(3, "cpu")
    assert moments.distance(0.5) == 0
    advantages = torch.randn(40, 2, 1, generator=torch.Generator().manual_seed(0))
    for advantage in advantages:
        moments.update(advantage, torch.tensor([0.7]), [0, 2])
    torch.testing.assert_close(moments.mean[[0, 2]], advantages.mean((0, 2)))
    assert moments.mean[1] == 0 and moments.distance(0.5).item() == pytest.approx(0.2)
    other.load(moments.state())
    assert all(torch.equal(getattr(moments, name), getattr(other, name)) for name in RunningMoments.FIELDS)
    normalised = moments.normalised(torch.tensor([[3.0], [0.0]]), [0, 2])
    assert normalised[0] > 1 and normalised[0] - normalised[1] == pytest.approx(3, abs=1)


def test_a_layer_that_joins_later_is_not_an_outlier(tiny_vit):
    moments = RunningMoments(2, "cpu")
    for value in (0.5, 0.6, 0.55, 0.45):
        moments.update(torch.tensor([[value]]), torch.tensor([0.5]), [1])
    before = moments.square.clone()
    returns = torch.tensor([[0.7], [0.55]])
    assert moments.normalised(returns, [0, 1])[0] == 0  # nothing to compare its first image with
    moments.update(returns, torch.tensor([0.5]), [0, 1])
    assert moments.mean[0] == pytest.approx(0.7) and moments.square < 1.1 * before
    assert moments.normalised(torch.tensor([[0.8], [0.55]]), [0, 1])[0] > 0


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_a_return_unlike_all_before_it_is_no_outlier_without_bound(alike):
    moments = RunningMoments(2, "cpu")
    for _ in range(600):
        moments.update(torch.full((2, 1), alike), torch.tensor([0.9]), [0, 1])
        advantage = moments.normalised(torch.full((2, 1), 0.4), [0, 1])
        assert advantage.abs().max() <= 8.001 and advantage[0].sign() == (
            1 if alike < 0.4 else -1
        )  # sqrt of the window
