"""What a search takes over from the training of its model, and when stored scores are those of the same search."""

import json
from types import SimpleNamespace

import pytest
import torch
from models import gated, images, latency_table

from hf_dynvit.objectives import depth_weights
from hf_dynvit.search import MaskScores, MaskSpace
from hf_dynvit.search.arguments import images_from, reward_of, training_of
from hf_dynvit.search.masks import Reward, differences, fingerprint, model_fingerprint


def training(**options):
    """What reward_of reads of results.json."""
    taught = {"objective": "reinforce", "reward": "blockdrop", "price": 3.0, "price_gain": 0.0, "penalty": 5.0}
    return {"price": 0.25, "settings": {"training": {**taught, "cost_weights": "depth", **options}}}


def asked(reward="auto", price=None, penalty=None):
    return SimpleNamespace(reward=reward, price=price, penalty=penalty)


@pytest.mark.parametrize(
    ("args", "trained", "wanted"),
    [
        (asked(), None, ("correct", 1.0, 1.0, "uniform")),
        (asked(), training(), ("blockdrop", 3.0, 5.0, "depth")),
        (asked(), training(price_gain=20.0), ("blockdrop", 0.25, 5.0, "depth")),  # the price followed the budget
        (asked(price=0.5, penalty=2.0), training(), ("blockdrop", 0.5, 2.0, "depth")),
        (asked("blockdrop"), training(), ("blockdrop", 3.0, 5.0, "depth")),
        (asked("correct"), training(), ("correct", 1.0, 1.0, "uniform")),  # numbers of another reward
        (asked(), training(objective="cost"), ("correct", 1.0, 1.0, "uniform")),  # taught by no reward
    ],
)
def test_the_reward_is_an_option_or_the_trainings_or_the_default(args, trained, wanted):
    reward = reward_of(args, trained)
    assert reward[:4] == wanted
    assert ("price: option" in reward.source) == (args.price is not None)


def test_a_price_that_followed_the_budget_and_was_not_recorded_is_the_default():
    trained = training(price_gain=20.0)
    del trained["price"]
    reward = reward_of(asked(), trained)
    assert reward.price == 1.0 and reward.source == "reward: training, price: default, penalty: training"


def test_results_beside_a_model_are_read_and_damage_is_named(tmp_path):
    assert training_of("hub/name") is None and training_of(tmp_path) is None
    (tmp_path / "results.json").write_text(json.dumps({"kind": "evaluation"}))
    assert training_of(tmp_path) is None
    (tmp_path / "results.json").write_text(json.dumps({"kind": "training", "seed": 3}))
    assert training_of(str(tmp_path))["seed"] == 3
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is damaged"):
        training_of(tmp_path)


def data(**fields):
    place = {"dataset_name": "flowers", "dataset_config_name": None, "data_dir": None, "data_files": None}
    return {**place, "train_split": "train", "validation_fraction": 0.1, **fields}


@pytest.mark.parametrize(
    ("before", "seed", "words"),
    [
        (data(), 0, "held out of train in the model's training too"),
        (data(), 1, "the model was trained on most of them: its training held out a fraction of 0.1 by seed 1"),
        (data(validation_fraction=0.0), 0, "the model was trained on all of them"),
        (data(dataset_name="birds"), 0, "trained on other data (birds)"),
    ],
)
def test_it_is_said_whether_the_model_has_seen_the_images(before, seed, words):
    trained = {"seed": seed, "dataset": before["dataset_name"], "settings": {"data": before}}
    split, origin = images_from(SimpleNamespace(search_split=None, seed=0), SimpleNamespace(**data()), trained)
    assert split == "held out of train"
    assert words in origin


def test_without_a_record_nothing_is_claimed():
    for search_split, wanted in ((None, "says whether it was trained on them"), ("validation", "none are of train")):
        args = SimpleNamespace(search_split=search_split, seed=0)
        assert wanted in images_from(args, SimpleNamespace(**data()), None)[1]


# ---------------------------------------------------------------------------------------------- rewards of masks


def scores_of(vit, timed=False, **options):
    model = gated(vit, [{"gate": "block"}])
    batch = images(16), torch.arange(16) % 5
    return MaskScores(model, MaskSpace(3), [batch], latencies=latency_table(model) if timed else None, **options)


def test_the_reward_of_blockdrop_by_hand(tiny_vit):
    found = scores_of(tiny_vit(3), reward=Reward("blockdrop", penalty=2.0), gating="open")((True, False))
    wanted = found["accuracy"] * (1 - found["cost"] ** 2) - 2.0 * found["error"]
    assert 0 < found["accuracy"] < 1 and found["reward"] == pytest.approx(wanted)


def test_the_reward_weighs_layers_as_the_training_did(tiny_vit):
    found = scores_of(tiny_vit(3), reward=Reward(cost_weights="depth"), gating="open")((False, True))
    spent = depth_weights(3)[[0, 2]].sum().item()
    assert found["reward"] == pytest.approx(found["accuracy"] - spent, abs=1e-6)


def test_milliseconds_are_those_of_the_table_and_the_reward_is_relative_to_the_dense_models(tiny_vit):
    reward = Reward(price=2.0, cost_weights="latency")
    found = scores_of(tiny_vit(3), timed=True, reward=reward, gating="open")((True, False))
    assert found["milliseconds"] == pytest.approx(2 * 5.1 + 2.0)
    assert found["reward"] == pytest.approx(found["accuracy"] - 2.0 * 12.2 / 17.3, abs=1e-6)
    scores = scores_of(tiny_vit(3), timed=True)
    acting = scores((True, False))["milliseconds"]
    model, (pixel_values, _) = scores.model, scores.batches[0]
    model.config.layer_mask = [[True, True], [True, True], [False, False]]
    with torch.no_grad():
        skipped = [~decision.sublayers[:, 0] for decision in model(pixel_values).decisions[:2]]
    share = torch.stack(skipped).float().mean().item()
    assert 0 < share < 1
    assert acting == pytest.approx(
        2 * (share * 1.0 + (1 - share) * 5.6) + 2.0, abs=1e-5
    )  # gates are asked in two layers


def test_milliseconds_need_the_table_of_the_model(tiny_vit):
    with pytest.raises(ValueError, match="'latency' need latencies"):
        scores_of(tiny_vit(3), reward=Reward(cost_weights="latency"))
    table = latency_table(gated(tiny_vit(3), None))
    with pytest.raises(
        ValueError, match=r"17 tokens, with gates in layers \[\]; this one runs 17 .* in layers \[0, 1, 2\]"
    ):
        MaskScores(
            gated(tiny_vit(3), [{"gate": "block"}]), MaskSpace(3), [(images(2), torch.zeros(2))], latencies=table
        )


# ---------------------------------------------------------------------------------------------- identity


def test_a_fingerprint_is_of_content_alone(tiny_vit):
    torch.manual_seed(0)
    model = gated(tiny_vit(3), [{"gate": "block"}])
    before = model_fingerprint(model)
    model.config._name_or_path = "elsewhere"
    assert model_fingerprint(model) == before
    with torch.no_grad():
        model.gates[1]["sublayers"].score.bias += 1e-4
    assert model_fingerprint(model) != before
    with torch.no_grad():
        model.gates[1]["sublayers"].score.bias -= 1e-4
    model.config.gates = [{"gate": "block", "threshold": 0.6}]
    assert model_fingerprint(model) != before

    pixels, labels = images(4), torch.arange(4)
    one = fingerprint(pixels, labels)
    assert one == fingerprint(pixels.clone(), labels.clone())
    assert one != fingerprint(pixels.flip(0), labels) != fingerprint(pixels, labels.flip(0))


def test_differences_are_named_where_they_are():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == [
        "a.c 2 there, 4 now",
        "d 3 there, None now",
    ]
    assert differences(None, {"a": 1}) == ["None there, {'a': 1} now"]


def test_a_damaged_file_of_scores_is_named(tiny_vit, tmp_path):
    for content in ("{", "[]", '{"scores": {}}'):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(ValueError, match="scores.json is damaged"):
            scores_of(tiny_vit(3), file=tmp_path / "scores.json")
