"""The recipe of operating points: what is best by products and by the clock, on the same images, and what it refuses ahead."""

from dataclasses import replace

import pytest
import torch
from recipe_place import points, report
from transformers import AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure import layer_times
from hf_dynvit.measure.trained_models import open_models
from hf_dynvit.model.configuration_dynvit import DynViTConfig
from hf_dynvit.model.prepack import can_prepack, is_prepacked
from hf_dynvit.report import read
from hf_dynvit.report.point_results import POINTS, point_items
from hf_dynvit.training import points as training_points
from hf_dynvit.training.importance import fit_importance
from hf_dynvit.training.points import Point, choices, places


def at(cost, distance, ms):
    return Point(resolution=None, budget=cost, cost=cost, distance=distance, ms={"1": ms})


def test_products_and_the_clock_choose_on_their_own():
    found = [at(1.0, 0.0, 9.0), at(0.52, 0.2, 8.0), at(0.49, 0.3, 4.0), at(0.6, 0.1, 8.0), at(0.7, 0.2, 3.0)]
    found += [at(0.521, 0.15, 8.5), at(0.4, float("nan"), 1.0)]
    (choice,) = choices(found, [0.5], [1])
    # 0.52 is near enough to the budget; 0.6 is nearer and as fast, though it costs more products; 0.7 is as near, and faster.
    assert (choice.by_cost, choice.in_time, choice.as_near) == (1, 3, 4)
    assert [one.budget for one in choices(found, [0.5, 1.0], [1])] == [1.0, 0.5]
    (lost,) = choices(found[-1:], [0.5], [1])
    assert (lost.by_cost, lost.in_time, lost.as_near) == (0, 0, 0)


def test_budgets_that_no_point_meets_are_said(capsys):
    found = [at(1.0, 0.0, 9.0), at(0.42, 0.2, 8.0)]
    assert points.reached(found, [0.5, 0.4, 0.3]) == [0.5, 0.4]
    assert "as little as [0.3], the cheapest has 0.420" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"as little as \[0.3\]: the cheapest has 0.420"):
        points.reached(found, [0.3])


def test_a_budget_is_tried_at_the_sizes_at_which_gates_can_meet_it_and_every_size_without_gates_too():
    config = DynViTConfig(image_size=224, patch_size=16, hidden_size=192, num_hidden_layers=12, num_attention_heads=3)
    tried = places(config, [0.5, 0.3])
    assert tried[None] == [0.3, 0.5, None] and all(budgets[-1] is None for budgets in tried.values())
    assert tried[192] == [0.5, None] and 0.3 in tried[144] and 0.5 not in tried[144]
    assert tried[128] == [None]  # too small for gates to meet 0.3, and of the same cost without them


def test_batches_are_of_the_size_that_they_are_timed_for():
    given = points.timed_batches(torch.zeros(70, 1), [1, 3, 32])
    assert {size: len(batches) for size, batches in given.items()} == {1: 32, 3: 10, 32: 2}
    assert all(len(batch) == size for size, batches in given.items() for batch in batches)


def words_of(place, output):
    words = [
        "--model",
        place.deep_vit,
        "--data_files",
        *place.files,
        "--output_dir",
        str(output),
        "--kernels",
        "false",
    ]
    return [
        *words,
        "--images",
        "12",
        "--rounds",
        "2",
        "--batch_sizes",
        "1",
        "2",
        "--budgets",
        "0.85",
        "0.7",
        "0.45",
        "0.4",
    ]


def test_points_are_measured_stored_and_shown(place, tmp_path, monkeypatch):
    timed, opened = [], []

    def clock(models, batches, rounds, medians):
        timed.append(([len(batch) for batch in batches], models, rounds))
        return layer_times.clocked_together(models, batches, rounds=rounds, medians=medians)

    def images_of(paths, data_args, **given):
        opened.append(data_args.validation_split)
        return open_models(paths, data_args, **given)

    monkeypatch.setattr(training_points, "clocked_together", clock)
    monkeypatch.setattr(points, "open_models", images_of)
    fitted = []
    monkeypatch.setattr(points, "fit_importance", lambda model, batches: fitted.append(fit_importance(model, batches)))
    made = points.main(words_of(place, tmp_path / "new"))
    found = read(tmp_path / "new" / "points.json")
    assert [vars(one) for one in found.points] == [vars(one) for one in made.points] and opened == [
        "validation",
        "train",
    ]
    # Two batch sizes, of all points on images of train and of those that are chosen on the reported ones.
    sizes, models, rounds = zip(*timed, strict=True)
    assert [set(size) for size in sizes] == [{1}, {2}] * 2 and set(rounds) == {2}
    assert [list(given) for given in models] == [[*range(len(found.points))]] * 2 + [found.chosen()] * 2
    gated = [point for point in found.points if point.budget is not None]
    assert len({(point.resolution, point.budget) for point in gated}) == len(gated) > len(fitted) > 1
    assert max(sum(one.resolution == size for one in gated) for size in (None, 24)) > 1
    (entrant,) = open_models(
        [place.deep_vit], points.parse_settings(["--data_files", *place.files], points.ImageArguments)[0]
    )
    batch = torch.stack([entrant.images[index]["pixel_values"] for index in range(6)])
    whole = points.training_images(
        *points.parse_settings(words_of(place, "x"), points.PointsArguments, points.ImageArguments)
    )
    with torch.no_grad():
        for index, point in enumerate(found.points):
            model = models[0][index]
            assert model.config.resolution == point.resolution and model.config.last_layer == "read"
            assert is_prepacked(model) == can_prepack() and bool(model.config.gates) == (point.budget is not None)
            costs = torch.cat([model(pixel_values).cost for pixel_values in whole])
            assert costs.mean().item() == pytest.approx(point.cost, abs=1e-5)
            assert point.budget is None or abs(point.cost - point.budget) < 0.03
            if point.budget is None and point.resolution is None:
                assert torch.allclose(model(batch).logits, entrant.model(batch).logits, atol=1e-5)
            chosen = index in found.chosen()
            assert (point.accuracy is not None) == chosen == bool(point.ms_reported) and set(point.ms) == {"1", "2"}
    shown = report.main([str(tmp_path / "new" / "points.json")])
    assert "### Chosen by the clock" in shown and shown.count("| deep_vit |") in (0, len(found.choices))
    items = point_items([found])
    assert len(items) == len(found.choices) == 2 * len({choice.budget for choice in found.choices})
    assert all(
        "–" not in POINTS[name](*item) for item in items for name in ("by products", "nearest in its time", "gained")
    )
    lost = replace(
        found, dense=None, points=[replace(point, accuracy=None, cost_reported=None) for point in found.points]
    )
    assert "–" in POINTS["gained"](lost, items[0][1]) and POINTS["dense"](lost, items[0][1]) == "–"


def test_a_model_that_is_no_plain_vit_and_a_folder_that_holds_something_are_refused(place, tmp_path):
    read_model = DynViTForImageClassification.from_vit(place.deep_vit, last_layer="read")
    read_model.save_pretrained(tmp_path / "read")
    AutoImageProcessor.from_pretrained(place.deep_vit).save_pretrained(tmp_path / "read")
    with pytest.raises(ValueError, match=r"points are of a plain ViT, and .*read has \['last_layer'\]"):
        points.main([*words_of(place, tmp_path / "new"), "--model", str(tmp_path / "read")])
    with pytest.raises(ValueError, match="is not empty"):
        points.main(words_of(place, tmp_path / "read"))


def test_accuracy_and_cost_are_means_over_all_images(place):
    (entrant,) = open_models(
        [str(place.vit)], points.parse_settings(["--data_files", *place.files], points.ImageArguments)[0]
    )
    top1, cost = points.accuracy(entrant.model, entrant.images)
    with torch.no_grad():
        right = [
            entrant.model(one["pixel_values"].unsqueeze(0)).logits.argmax(-1).item() == one["labels"]
            for one in (entrant.images[index] for index in range(len(entrant.images)))
        ]
    assert top1 == sum(right) / len(right) and cost == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--budgets", "1.5"], "budget must be in"),
        (["--rounds", "0"], "must be at least 1"),
        (["--images", "1"], "need as many images"),
        (["--gates", "tome"], "learns nothing"),
        (["--images", "10000"], "there are 24 images of train"),
        (["--batch_sizes", "13", "--images", "13"], "need as many images, there are 12"),
        (["--validation_split", "train", "--validation_fraction", "0.5"], "another validation_split"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(points, "measured_points", lambda *given: pytest.fail("it began"))
    with pytest.raises(ValueError, match=message):
        points.main([*words_of(place, tmp_path / "new"), *changes])
    assert not (tmp_path / "new").exists()
