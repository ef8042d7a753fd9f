"""Claims about costs measured image by image: beside difficulty, beside equal costs, and the model left as it was."""

import pytest
import torch
from models import gated
from torch.nn import functional as F
from trainers import Images, assert_same, weights

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure.per_image import per_image, rank_correlation
from hf_dynvit.measure.trained_models import Entrant, dense_vit


COUNT = 12
PATCHES = [{"gate": "patch", "drop": True}]


def entrant(vit, gates=PATCHES, count=2 * COUNT):
    model = gated(vit, gates) if gates else DynViTForImageClassification.from_vit(vit)
    return Entrant("tiny", model, dense_vit(model), Images(count), "")


@pytest.fixture
def tiny(tiny_vit):
    return entrant(tiny_vit(num_hidden_layers=4, num_labels=3))


def test_equal_values_share_the_mean_of_their_ranks():
    one, other = torch.tensor([0.1, 0.7, 0.7, 2.0]), torch.tensor([1.0, 3.0, 2.0, 40.0])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: products of their distances from the mean add up to 4.5, squares to 4.5 and 5.
    assert rank_correlation(one, other) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(one, -other) == pytest.approx(-rank_correlation(one, other))


def test_what_is_alike_for_all_images_is_correlated_with_nothing():
    assert rank_correlation(torch.ones(3), torch.arange(3.0)) is None
    assert rank_correlation(torch.arange(3.0), torch.ones(3)) is None


def test_each_image_has_its_own_cost_and_the_loss_of_the_dense_model(tiny):
    found = per_image(tiny, COUNT, seed=3, batch_size=5)
    assert len(found.places) == len(found.places.unique()) == COUNT
    pixels, labels = (torch.as_tensor(values)[found.places] for values in (tiny.images.pixels, tiny.images.labels))
    with torch.no_grad():
        out, dense = tiny.model(pixels), tiny.vit(pixels).logits
    torch.testing.assert_close(found.cost, out.cost)
    torch.testing.assert_close(found.dense_loss, F.cross_entropy(dense, labels, reduction="none"))
    summary = found.summary()
    assert summary.accuracy == pytest.approx((out.logits.argmax(-1) == labels).float().mean().item())
    assert summary.dense_accuracy == pytest.approx((dense.argmax(-1) == labels).float().mean().item())
    assert summary.correlation == pytest.approx(rank_correlation(out.cost, found.dense_loss), abs=1e-6)
    assert (summary.accuracy - summary.equal_accuracy) * COUNT == pytest.approx(
        summary.only_shared - summary.only_equal
    )


def test_the_seed_chooses_the_images_and_there_may_be_fewer(tiny):
    first, again, other = (per_image(tiny, 3, seed).places.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(per_image(tiny, 10**6).places.tolist()) == list(range(2 * COUNT))


def test_at_the_same_cost_images_are_nearer_to_the_mean_than_by_shared_thresholds(tiny):
    found = per_image(tiny, COUNT)
    target = found.cost.mean()
    assert found.cost.std() > 0.02
    assert ((found.equal_cost - target).abs() <= (found.cost - target).abs() + 1e-6).all()
    summary = found.summary()
    assert summary.equal_cost_std < 0.25 * summary.cost_std
    assert summary.equal_cost == pytest.approx(summary.cost, abs=0.01)


def test_shared_thresholds_that_cost_the_same_are_left_alone(tiny_vit):
    found = per_image(entrant(tiny_vit(num_labels=3), [{"gate": "head", "layers": [0]}]), 1)
    assert torch.equal(found.equal_cost, found.cost.double()) and torch.equal(found.equal_read, found.read)
    assert found.summary().correlation is None and found.summary().only_shared == found.summary().only_equal == 0


def state(model):
    return weights(model), [module.training for module in model.modules()], model._layout


@pytest.mark.parametrize("after", [None, 7])
def test_the_model_is_left_as_it_was_found_even_if_an_image_fails(tiny, after):
    model, seen = tiny.model.train(), []
    model.layout = "masked"
    before = state(model)

    def fail(*_):
        seen.append([gate.score.bias.clone() for gate in model.learned_gates()])
        if len(seen) == after:
            raise RuntimeError("an image fails")

    handle = model.register_forward_pre_hook(fail)
    if after:
        with pytest.raises(RuntimeError, match="an image fails"):
            per_image(tiny, COUNT)
    else:
        per_image(tiny, COUNT)
    handle.remove()
    assert not torch.equal(seen[-1][0], seen[0][0])  # in the middle of a search
    assert_same(before[0], state(model)[0])
    assert before[1:] == state(model)[1:]


@pytest.mark.parametrize("gates", [None, [{"gate": "random"}], [{"gate": "random"}, {"gate": "head"}]])
def test_models_without_thresholds_or_with_chance_are_refused(tiny_vit, gates):
    names = [entry["gate"] for entry in gates or []]
    with pytest.raises(ValueError, match=f"no random ones, the gates here are \\{names}".replace("]", "\\]")):
        per_image(entrant(tiny_vit(num_labels=3), gates), COUNT)


def test_no_images_are_refused(tiny):
    with pytest.raises(ValueError, match="at least 1 image is needed, got 0 of 24"):
        per_image(tiny, 0)


def test_sixteen_bit_is_enough(tiny):
    half = tiny._replace(model=tiny.model.to(torch.bfloat16), vit=dense_vit(tiny.model))
    summary = per_image(half, COUNT).summary()
    assert summary.equal_cost_std < summary.cost_std
