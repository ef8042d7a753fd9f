"""The recipe of operating points: what is best by products and by the clock, on the same images, and what it refuses ahead."""

import pytest
import torch
from recipe_place import points, report

from hf_dynvit.measure import layer_times
from hf_dynvit.measure.trained_models import open_models
from hf_dynvit.model.configuration_dynvit import DynViTConfig
from hf_dynvit.report import read
from hf_dynvit.report.point_results import POINTS, point_items
from hf_dynvit.training import points as training_points
from hf_dynvit.training.points import Point, choices, places


def at(cost, distance, ms):
    return Point(resolution=None, budget=cost, cost=cost, distance=distance, ms={"1": ms})


def test_products_and_the_clock_choose_on_their_own():
    found = [at(1.0, 0.0, 9.0), at(0.5, 0.2, 8.0), at(0.49, 0.3, 4.0), at(0.6, 0.1, 8.0), at(0.7, 0.2, 3.0)]
    (choice,) = choices(found, [0.5], [1])
    # 0.6 is nearer and as fast, though it costs more products; 0.7 is as near, and faster.
    assert (choice.by_cost, choice.in_time, choice.as_near) == (1, 3, 4)
    assert choices(found, [0.3], [1]) == [] and [one.budget for one in choices(found, [0.5, 1.0], [1])] == [1.0, 0.5]


def test_a_budget_is_tried_at_the_sizes_at_which_gates_can_meet_it_and_every_size_without_gates_too():
    config = DynViTConfig(image_size=224, patch_size=16, hidden_size=192, num_hidden_layers=12, num_attention_heads=3)
    tried = places(config, [0.5, 0.3])
    assert tried[None] == [0.3, 0.5, None] and all(budgets[-1] is None for budgets in tried.values())
    assert tried[192] == [0.5, None] and 0.3 in tried[144] and 0.5 not in tried[144]


def words_of(place, output):
    words = ["--model", str(place.vit), "--data_files", *place.files, "--output_dir", str(output)]
    return [
        *words,
        "--images",
        "8",
        "--rounds",
        "2",
        "--batch_sizes",
        "1",
        "2",
        "--budgets",
        "0.8",
        "0.6",
        "--kernels",
        "false",
    ]


def test_points_are_measured_stored_and_shown(place, tmp_path, monkeypatch):
    timed = []

    def clock(models, batches, rounds, medians):
        timed.append(([len(batch) for batch in batches], len(models), rounds))
        return layer_times.clocked_together(models, batches, rounds=rounds, medians=medians)

    monkeypatch.setattr(training_points, "clocked_together", clock)
    made = points.main(words_of(place, tmp_path))
    found = read(tmp_path / "points.json")
    assert [vars(one) for one in found.points] == [vars(one) for one in made.points]
    # Two batch sizes, of all points on images of train and of those that are chosen on the reported ones.
    sizes, models, rounds = zip(*timed, strict=True)
    assert [set(size) for size in sizes] == [{1}, {2}] * 2 and set(rounds) == {2}
    assert models == (len(found.points),) * 2 + (len(found.chosen()),) * 2
    assert len({point.resolution for point in found.points if point.budget is None}) == len(
        [point for point in found.points if point.budget is None]
    )
    for place_of, point in enumerate(found.points):
        chosen = place_of in found.chosen()
        assert (point.accuracy is not None) == chosen == bool(point.ms_reported) and set(point.ms) == {"1", "2"}
    whole = next(one for one in found.points if one.budget is None and one.resolution is None)
    assert whole.cost == 1.0 and whole.distance == pytest.approx(0.0, abs=1e-6)
    for choice in found.choices:
        first, second, third = (found.points[one] for one in (choice.by_cost, choice.in_time, choice.as_near))
        assert (
            second.distance <= first.distance and third.ms[str(choice.batch_size)] <= first.ms[str(choice.batch_size)]
        )
    shown = report.main([str(tmp_path / "points.json")])
    assert "### Chosen by the clock" in shown and len(point_items([found])) == len(found.choices)
    (item, *_) = point_items([found])
    assert all(isinstance(str(column(*item)), str) for column in POINTS.values())


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
        (["--batch_sizes", "10000", "--images", "10000"], "there are"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(points, "measured_points", lambda *given: pytest.fail("it began"))
    with pytest.raises(ValueError, match=message):
        points.main([*words_of(place, tmp_path / "new"), *changes])
    assert not (tmp_path / "new").exists()
