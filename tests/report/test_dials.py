"""The table of one model for every budget: beside models of the same method, on the same images, for that budget alone."""

from dataclasses import replace

import pytest
from made_results import MEASURED, evaluation, given, training
from recipe_place import report

from hf_dynvit.report import Cell, Leaderboard
from hf_dynvit.report.dials import dial_items


MERGE = [{"gate": "merge"}]
PLACE = {"dataset": "pets", "split": "validation", "split_files": ["validation.parquet"], "images": 100}


def cell(accuracy, seed=0, **changes):
    same = {"method": "merge", "budget": 0.5, "tuned": True, "seed": seed, "resolution": None, "gates": None}
    return Cell(**vars(given(accuracy, 0.51)), **same | changes)


def board(*cells):
    settings = {"board": {"images": 12}, "training": {"max_steps": 150}}
    return Leaderboard(
        **MEASURED, **PLACE, model="vit", command="python ...", dense=given(), settings=settings, cells=list(cells)
    )


def taught(start="vit", budgets=(0.5, 0.3), steps=150):
    """The training in turns, which wrote to out/dial_0."""
    return training(start=start, name="dial", options={"tuning_budgets": list(budgets), "max_steps": steps})


def turned(accuracy=0.6, budget=0.5, **facts):
    known = {"preset": "merge", "learned": {"merge": 0.1}, "budget": budget, "budgets": [0.3, 0.5], **PLACE}
    return evaluation(MERGE, accuracy, budget, "out/dial_0", **known | facts)


def test_a_dial_stands_beside_the_mean_of_the_models_for_that_budget_alone():
    results = [taught(), turned(), turned(0.5, 0.3), board(cell(0.58), cell(0.60, seed=1))]
    text = report.render(results).split("### One model for every budget")[1]
    row = next(line for line in text.splitlines() if "dial_0" in line)
    assert "| 0.5 | 60.00 at 0.500 | 59.00 ± 1.41 at 0.510 (2 seeds) | +1.00 |" in row
    assert "One checkpoint, whose training took its budgets in turn" in text


@pytest.mark.parametrize(
    "changes",
    (
        {"method": "tome"},
        {"budget": 0.65},
        {"tuned": False},
        {"resolution": 160},
        {"cascade": [{"resolution": 160, "budget": 0.2, "shift": 0.0}]},
    ),
    ids=lambda changes: next(iter(changes)),
)
def test_other_models_are_not_beside_it(changes):
    assert not dial_items([taught()], [turned()], [board(cell(0.58, **changes))])


def test_other_images_and_models_of_one_budget_are_not_beside_it():
    cells = board(cell(0.58))
    assert dial_items([taught()], [turned()], [cells])
    assert not dial_items([taught()], [turned()], [replace(cells, images=99)])
    assert not dial_items([taught()], [turned(budgets=None)], [cells])
    assert not dial_items([taught()], [turned(budgets=[0.4, 0.6])], [cells])  # between two of its budgets
    assert not dial_items([taught()], [turned(learned={"merge": 0.0})], [cells])  # the twin without importance


def test_it_is_beside_trainings_of_as_many_steps_from_the_same_start_alone():
    cells, longer = board(cell(0.58)), board(cell(0.68))
    longer = replace(longer, settings={"board": {"images": 12}, "training": {"max_steps": 640}})
    ((_, found),) = dial_items([taught()], [turned()], [longer, cells])
    assert [one.accuracy for one in found] == [0.58]
    for other in (taught(start="vit-huge"), taught(budgets=[0.5]), taught(steps=300)):
        assert not dial_items([other], [turned()], [cells])
    assert not dial_items([], [turned()], [cells])  # calibrated for several, not trained
