"""What learning is worth on a board: each method that learns importance against the best that does not, whatever that is."""

from dataclasses import replace

from test_leaderboard_plot import board

from hf_dynvit.report.leaderboard import sections
from hf_dynvit.report.leaderboard_gains import gain_rows


def made(*cells):
    """A board of cells given as (method, budget, cost, tops of the seeds in per cent)."""
    whole = board()
    (one,) = whole.cells
    whole.cells = [
        replace(one, method=method, budget=budget, cost=cost, seed=seed, accuracy=top / 100, throughput=[])
        for method, budget, cost, tops in cells
        for seed, top in enumerate(tops)
    ]
    return whole


def test_a_gain_is_over_the_best_that_does_not_learn_and_is_as_cheap():
    cells = [
        ("merge", 0.5, 0.5, (91.0, 92.0, 93.0)),
        ("tome", 0.5, 0.51, (90.0, 91.0, 92.0)),
        ("random-merge", 0.5, 0.5, (80.0,)),
        ("tome", 0.65, 0.65, (99.0,)),  # dearer
    ]
    (row,) = gain_rows(made(*cells))
    assert row["learns"] == "merge" and row["top-1 at cost"] == "92.00 ± 1.00 at 0.500 (3 seeds)"
    assert row["the best that does not"] == "tome 91.00 ± 1.00 at 0.510 (3 seeds)" and row["gain"] == "+1.00 ± 1.41"
    assert row["its twin"] == row["dense"] == "–"
    (row,) = gain_rows(made(*cells, ("resized", 0.4, 0.4, (95.0,))))  # cheaper, and better
    assert row["the best that does not"] == "resized 95.00 at 0.400" and row["gain"] == "-3.00"


def test_the_twin_and_the_dense_model_stand_beside():
    cells = [
        ("merge", 0.5, 0.5, (92.0,)),
        ("merge-unlearned", 0.5, 0.5, (91.5,)),
        ("cascade-fixed", 0.5, 0.5, (92.5,)),
        ("cascade-unlearned", 0.5, 0.49, (91.0,)),
        ("dense", 1.0, 1.0, (93.0,)),
    ]
    merge, cascade = gain_rows(made(*cells))
    assert merge["its twin"] == "+0.50 over 91.50 at 0.500" and merge["dense"] == "-1.00"
    assert cascade["its twin"] == "+1.50 over 91.00 at 0.490" and cascade["gain"] == "+1.00"
    assert cascade["the best that does not"] == "merge-unlearned 91.50 at 0.500"


def test_without_a_rival_or_anything_that_learns_there_is_no_table():
    assert gain_rows(made(("merge", 0.5, 0.5, (92.0,)))) == []
    assert gain_rows(made(("tome", 0.5, 0.5, (92.0,)), ("one of a plugin", 0.5, 0.5, (93.0,)))) == []
    assert gain_rows(made(("merge", 0.5, 0.5, (92.0,)), ("dense", 1.0, 0.5, (93.0,)))) == []
    assert "What learning is worth" not in "".join(sections([made(("merge", 0.5, 0.5, (92.0,)))]))


def test_what_is_untrained_does_not_count():
    whole = made(("merge", 0.5, 0.5, (92.0,)), ("tome", 0.5, 0.5, (91.0,)))
    whole.cells[1] = replace(whole.cells[1], tuned=False)
    assert gain_rows(whole) == []
