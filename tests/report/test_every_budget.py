"""The table of a cascade for every budget: each budget that it reaches, beside the best model that was trained for that alone."""

import pytest
from made_results import MEASURED, given
from recipe_place import report

from hf_dynvit.measure.looks import AtBudget, Looks
from hf_dynvit.report import Cell, Leaderboard
from hf_dynvit.report.every_budget import every_rows


LOOKS = [{"resolution": 128, "budget": 0.2, "shift": 0.0}, {"resolution": 224, "budget": 0.8, "shift": 0.0}]
REACHED = {0.5: 0.92, 0.4: 0.91, 0.3: 0.90}


def cell(method, budget, accuracy, cost=None, seed=0, at=None):
    random = {"at_random": 0.5, "cost_at_random": 0.5}
    turned = [AtBudget(budget=one, accuracy=top, cost=one, **random) for one, top in (at or {}).items()]
    known = {"accuracy": [0.9, 0.92], "cost": [0.2, 1.0], "shares": [0.8, 0.2], "at_random": 0.9}
    looks = Looks(**known, at=turned) if at else None
    same = {"tuned": True, "seed": seed, "resolution": None, "gates": None, "cascade": LOOKS if at else None}
    return Cell(**vars(given(accuracy, cost or budget)), method=method, budget=budget, looks=looks, **same)


def board(*cells):
    settings = {"board": {"images": 12}, "training": {"max_steps": 150}}
    place = {"dataset": "pets", "split": "validation", "split_files": ["validation.parquet"], "images": 100}
    own = {"model": "vit", "command": "python ...", "dense": given(), "settings": settings, "cells": list(cells)}
    return Leaderboard(**MEASURED, **place, **own)


def every(seed=0, **options):
    return cell("cascade-every", 0.4, 0.91, seed=seed, at=REACHED, **options)


def test_it_stands_beside_the_best_that_met_each_budget():
    own = [
        cell("merge", 0.5, 0.915),
        cell("tome", 0.5, 0.90),
        cell("evit", 0.5, 0.95, cost=0.6),
        cell("tome", 0.3, 0.8),
    ]
    own += [cell("merge", 0.3, accuracy, seed=seed) for seed, accuracy in enumerate((0.88, 0.90))]
    others = [cell("cascade", 0.65, 0.93, at=REACHED), cell("tome", 0.65, 0.92)]
    rows = {row["budget"]: row for row in every_rows([board(every(), every(1), *own, *others)])}
    assert list(rows) == [0.5, 0.3]  # at 0.4 no other one was trained, and 0.65 it does not reach
    assert rows[0.5]["best for that budget alone"] == "merge 91.50 at 0.500"
    assert rows[0.5]["difference"] == "+0.50" and rows[0.5]["method"] == "cascade-every"
    assert rows[0.5]["top-1 at cost"] == "92.00 ± 0.00 at 0.500 (2 seeds)"
    assert rows[0.3]["difference"] == "+1.00 ± 1.41"


def test_of_equal_ones_that_with_more_seeds_stands_beside_it():
    own = [cell("merge", 0.5, accuracy, seed=seed) for seed, accuracy in enumerate((0.90, 0.92))]
    for others in ([*own, cell("tome", 0.5, 0.91)], [cell("tome", 0.5, 0.91), *own]):
        (row,) = every_rows([board(every(), *others)])
        assert row["best for that budget alone"].startswith("merge 91.00 ± 1.41")


@pytest.mark.parametrize("method", ["cascade", "cascade-together", "made-up"])
def test_it_is_for_looks_that_are_the_same_for_every_budget(method):
    cells = [cell(method, 0.4, 0.91, at=REACHED), cell("merge", 0.5, 0.9), cell("tome", 0.5, 0.9)]
    assert not every_rows([board(*cells)])


def test_the_page_of_results_has_it():
    text = report.render([board(every(), cell("merge", 0.5, 0.915), cell("tome", 0.5, 0.90))])
    part = text.split("### A cascade for every budget")[1]
    assert "met it to within 0.02" in part and "| +0.50 |" in part
