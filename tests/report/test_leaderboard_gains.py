"""What the methods of ours gain on a board: over the best other one of the same cost, over the same without importance."""

from dataclasses import replace

from test_leaderboard_plot import board

from hf_dynvit.report.leaderboard import sections
from hf_dynvit.report.leaderboard_gains import gain_rows, twin_of


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


def test_a_gain_is_over_the_best_other_one_of_the_same_cost():
    cells = [
        ("merge", 0.5, 0.5, (91.0, 92.0, 93.0)),
        ("tome", 0.5, 0.505, (90.0, 91.0, 92.0)),
        ("random-merge", 0.5, 0.5, (80.0,)),
        ("topk", 0.65, 0.65, (99.0,)),  # what it has for less is not known
    ]
    (row,) = gain_rows(made(*cells))
    assert row["method"] == "merge" and row["top-1 at cost"] == "92.00 ± 1.00 at 0.500 (3 seeds)"
    assert row["over the best other one"] == "tome 91.00 ± 1.00 at 0.505 (3 seeds)" and row["gain"] == "+1.00 ± 1.41"
    assert row["over its twin"] == row["over dense"] == "–"
    (row,) = gain_rows(made(*cells, ("resized", 0.4, 0.4, (95.0,))))  # cheaper, and better
    assert row["over the best other one"] == "resized 95.00 at 0.400" and row["gain"] == "-3.00"
    (row,) = gain_rows(made(*cells, ("cropr", 0.5, 0.5, (91.5,))))  # it learns, and is another one
    assert row["over the best other one"] == "cropr 91.50 at 0.500"


def test_a_method_that_costs_more_than_it_was_asked_is_held_against_others_at_its_own_cost():
    cells = [("merge", 0.5, 0.54, (72.0,)), ("tome", 0.5, 0.5, (70.0,)), ("tome", 0.65, 0.65, (75.5,))]
    (row,) = gain_rows(made(*cells))
    assert row["over the best other one"] == "tome 71.47 at 0.540, between 70.00 at 0.500 and 75.50 at 0.650"
    assert row["gain"] == "+0.53"


def test_the_twin_is_the_same_without_importance_and_the_dense_model_stands_beside():
    cells = [
        ("merge", 0.5, 0.5, (92.0, 92.4)),
        ("merge-unlearned", 0.5, 0.5, (91.5, 91.7)),
        ("cascade", 0.5, 0.5, (92.1,)),
        ("cascade-fixed", 0.5, 0.5, (92.5,)),
        ("cascade-together", 0.5, 0.5, (93.0,)),
        ("cascade-unlearned", 0.5, 0.49, (91.0,)),
        ("dense", 1.0, 1.0, (93.0,)),
    ]
    rows = {row["method"]: row for row in gain_rows(made(*cells))}
    assert rows["merge"]["over its twin"] == "+0.60 ± 0.32 (91.60 ± 0.14 at 0.500 (2 seeds))"
    assert rows["cascade"]["over its twin"] == "+1.10 (91.00 at 0.490)" and rows["cascade"]["over dense"] == "-0.90"
    assert rows["cascade"]["over the best other one"] == "merge-unlearned 91.60 ± 0.14 at 0.500 (2 seeds)"
    # Looks that learn in each step, or whose merges are fixed, are trained in another way than the twin.
    assert rows["cascade-together"]["over its twin"] == rows["cascade-fixed"]["over its twin"] == "–"
    assert twin_of("merge") == "merge-unlearned" and twin_of("adavit-plus") is None


def test_without_a_rival_or_a_method_of_ours_there_is_no_table():
    assert gain_rows(made(("merge", 0.5, 0.5, (92.0,)))) == []
    assert gain_rows(made(("tome", 0.5, 0.5, (92.0,)), ("one of a plugin", 0.5, 0.5, (93.0,)))) == []
    assert gain_rows(made(("merge", 0.5, 0.5, (92.0,)), ("dense", 1.0, 0.5, (93.0,)))) == []
    assert "*Gains*" not in "".join(sections([made(("merge", 0.5, 0.5, (92.0,)))]))
    text = "".join(sections([made(("merge", 0.5, 0.5, (92.0,)), ("tome", 0.5, 0.5, (91.0,)))]))
    assert "*Gains*" in text and "{" not in text


def test_what_is_untrained_does_not_count():
    whole = made(("merge", 0.5, 0.5, (92.0,)), ("tome", 0.5, 0.5, (91.0,)))
    whole.cells[1] = replace(whole.cells[1], tuned=False)
    assert gain_rows(whole) == []
