"""The plot of a leaderboard marks what a method has to beat, the dense model and the next smaller one, and parts become one board."""

from dataclasses import replace

import pytest
from made_results import MEASURED, given, speed

from hf_dynvit.measure.dense import OURS
from hf_dynvit.measure.looks import AtBudget, Looks
from hf_dynvit.report import Cell, Leaderboard, SmallerDense, leaderboard, leaderboard_plot
from hf_dynvit.report.leaderboard_looks import look_rows
from hf_dynvit.report.leaderboard_plot import below_frame
from hf_dynvit.report.plots import new_figure


SMALLER = "dense, vit_small"


def board(**facts):
    """One method at one budget, tuned, twice as fast as the dense model that takes 6 ms for two images."""
    timed = {"batch_size": 2, "gain": 2.0}
    cell = Cell(
        **vars(given(0.55, 0.5)),
        method="merge",
        budget=0.5,
        tuned=True,
        seed=0,
        resolution=None,
        gates=None,
        throughput=[speed(1, 1.0), speed(**timed)],
    )
    settings = {"board": {"images": 12}, "training": {"max_steps": 150}}
    same = {"model": "vit", "dataset": "pets", "split": "validation", "split_files": [], "images": 9}
    return Leaderboard(
        **MEASURED, **same, command="python ...", dense=given(), settings=settings, cells=[cell], **facts
    )


def smaller(*batch_sizes):
    """A dense model of a third of the computation, which takes 1.5 ms for a batch by its fastest way."""
    speeds = [speed(batch, dense_ms={"eager": 9.0, "sdpa": 1.5, OURS: 3.0}) for batch in batch_sizes]
    return SmallerDense(**vars(given(0.5)) | {"gmacs": 1 / 3}, model="vit_small", throughput=speeds)


def drawn(made, path, monkeypatch, marker="*"):
    """Panel -> label -> point of what is drawn with a marker, as a star."""
    figures = []

    def kept(*size, **options):
        figures.append(new_figure(*size, **options))
        return figures[-1]

    monkeypatch.setattr(leaderboard_plot, "new_figure", kept)
    leaderboard_plot.plot(made, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    stars = [[line for line in axis.lines if line.get_marker() == marker] for axis in figures[0].axes]
    return [{line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in lines} for lines in stars]


def test_dense_and_the_next_smaller_stand_where_they_were_measured(tmp_path, monkeypatch):
    by_cost, alone, together = drawn(board(smaller=smaller(2)), tmp_path / "plot.png", monkeypatch)
    assert by_cost == {"dense, as given": (1.0, 60.0), SMALLER: (pytest.approx(1 / 3), 50.0)}
    assert alone == {"dense, as given": (1.0, 60.0)}  # the smaller one was not timed there
    assert together == {"dense, as given": (1.0, 60.0), SMALLER: (pytest.approx(1.5 / 6), 50.0)}
    by_cost, *by_time = drawn(board(), tmp_path / "plot.png", monkeypatch)
    assert [set(panel) for panel in (by_cost, *by_time)] == [{"dense, as given"}] * 3


def test_time_is_relative_to_the_dense_model_of_the_same_run_and_the_mean_of_the_seeds_timed(tmp_path, monkeypatch):
    made = board()
    first = made.cells[0]
    made.cells += [
        replace(
            first, seed=1, accuracy=0.65, throughput=[replace(speed(2, 2.0), program_ms=1.5)]
        ),  # compiled, 4 times
        replace(first, seed=2, accuracy=0.6, throughput=[]),
        replace(first, tuned=False, accuracy=0.1, throughput=[]),
    ]
    untrained, by_cost, alone, together = drawn(made, tmp_path / "plot.png", monkeypatch, marker="o")
    assert untrained == {"merge": (0.5, pytest.approx(10.0))}  # and no panel of times
    assert by_cost == {"merge": (0.5, pytest.approx(60.0))}
    assert alone == {"merge": (1.0, pytest.approx(60.0))}
    assert together == {"merge": (pytest.approx((1 / 2 + 1 / 4) / 2), pytest.approx(60.0))}


def test_points_far_below_the_others_are_counted_in_place_of_squeezing_them():
    tops = [92.0, 91.0, 91.0, 86.0, 60.0]
    assert below_frame(tops, [92.5]) == (80.0, 1) and below_frame(tops, [70.0]) == (69.0, 1)
    assert below_frame([92.0, 91.0, 91.0, 91.0, 60.0], [92.5]) == (82.0, 1)
    assert (
        below_frame(tops[:4], [92.5]) is None and below_frame(tops, [50.0]) is None and below_frame([], [1.0]) is None
    )


def test_a_panel_says_how_many_points_are_below_it(tmp_path, monkeypatch):
    made, titles = board(), []
    first = made.cells[0]
    made.cells += [
        replace(first, method=name, accuracy=top, throughput=[])
        for name, top in (("tome", 0.54), ("pitome", 0.53), ("evit", 0.1))
    ]
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axis, title, **how: titles.append(title))
    drawn(made, tmp_path / "plot.png", monkeypatch)
    assert titles[0] == "tuned (1 below 45 % not shown)" and titles[1:] == ["tuned"] * 2


def test_a_board_in_parts_has_the_smaller_model_of_any_and_says_what_it_reaches():
    other = replace(board().cells[0], seed=1)
    for parts in ([board(smaller=smaller(2)), board()], [board(), board(smaller=smaller(2))]):
        parts[1].cells.append(other)  # and the first one once more
        (joined,) = leaderboard.joined(parts)
        assert joined.smaller.model == "vit_small" and [cell.seed for cell in joined.cells] == [0, 1]
        text = "\n".join(leaderboard.sections(parts))
        assert "The next smaller dense model, vit_small, has 50.00 at 0.333 of the dense model's computation" in text
        assert "of the dense model's computation, 0.25 of its time at batch 2." in text


def test_parts_lend_their_times_to_the_same_cell_and_nothing_else():
    timed = board()
    bare, other = replace(timed, cells=[replace(timed.cells[0], throughput=[])]), board()
    other.cells[0] = replace(other.cells[0], accuracy=0.9)
    for parts, times in (([bare, timed], 2), ([timed, bare], 2), ([bare, other], 0)):
        (joined,) = leaderboard.joined(parts)
        (cell,) = joined.cells
        assert (cell.accuracy, len(cell.throughput)) == (0.55, times)


def test_parts_lend_what_other_budgets_give_and_each_row_says_what_the_decision_is_worth():
    def seen(*accuracies):
        same = {"at_random": 0.5, "cost_at_random": 0.3}
        at = [AtBudget(budget=one, accuracy=found, cost=one, **same) for one, found in accuracies]
        return Looks(accuracy=[0.5, 0.7], cost=[0.3, 0.9], shares=[0.5, 0.5], at_random=0.6, at=at)

    bare, looked = board(), board()
    looked.cells[0] = replace(looked.cells[0], looks=seen((0.5, 0.6), (0.4, 0.55)))
    for parts in ([bare, looked], [looked, bare]):
        (joined,) = leaderboard.joined(parts)
        assert joined.cells[0].looks == looked.cells[0].looks and joined.cells[0].throughput
    looked.cells += [replace(looked.cells[0], seed=1, looks=seen((0.5, 0.7)))]
    words = {"method": "merge", "": "tuned", "for": 0.5}
    found = {
        "0.5": "65.00 ± 7.07 at 0.500 (+15.00 at 0.300) (2 seeds)",
        "0.4": "55.00 at 0.400 (+5.00 at 0.300) (1 of 2 seeds)",
    }
    assert look_rows(looked) == [words | found] and look_rows(bare) == []
    assert "One cascade at every budget" in "".join(leaderboard.sections([looked]))


def test_a_board_in_parts_of_several_machines_names_all_of_them():
    here, there = board(), replace(board(), device="Other CPU", instructions="AVX2")
    there.cells[0] = replace(there.cells[0], seed=1)
    (joined,) = leaderboard.joined([here, there])
    assert joined.device.endswith(" and Other CPU (AVX2)") and joined.device.startswith(here.device)
    (again,) = leaderboard.joined([joined, there, here])
    assert (again.device, again.instructions) == (joined.device, None)


def test_a_dense_model_tuned_alike_takes_the_place_of_the_given_one(tmp_path, monkeypatch):
    made = board()
    made.cells.append(replace(made.cells[0], method="dense", budget=1.0, accuracy=0.7, cost=1.0, throughput=[]))
    made.cells.append(replace(made.cells[1], budget=0.5))
    for panel in drawn(made, tmp_path / "plot.png", monkeypatch):
        assert panel == {"dense, tuned": (1.0, pytest.approx(70.0))}


def test_the_best_in_bold_has_met_the_budget():
    made = board()
    made.cells.append(replace(made.cells[0], method="dearer", accuracy=0.9, cost=0.53, throughput=[]))
    rows = leaderboard.accuracy_rows(made)
    assert [row["0.5"] for row in rows] == ["**55.00** at 0.500", "90.00 at 0.530"]


def test_no_two_methods_look_alike():
    assert len({(at % 10, leaderboard_plot.marker_of(at)) for at in range(32)}) == 32


def test_of_many_methods_those_have_a_color_that_lead_somewhere(tmp_path, monkeypatch):
    made, first = board(), board().cells[0]
    made.cells = [replace(first, method=f"method {at}", accuracy=0.5 - at / 100) for at in range(9)]
    made.cells += [replace(first, method="tome", accuracy=0.1), replace(first, method="dense", accuracy=0.9)]
    panels = [leaderboard_plot.points_of(made, True, scale) for scale in leaderboard_plot.scales(made, True)]
    assert len(leaderboard_plot.in_color(made, panels)) == 10 and "dense" not in panels[0]
    quick = {"accuracy": 0.4, "throughput": [speed(1, 9.0)]}
    made.cells += [replace(first, method="quick", **quick), replace(first, method="cheap", accuracy=0.42, cost=0.4)]
    panels = [leaderboard_plot.points_of(made, True, scale) for scale in leaderboard_plot.scales(made, True)]
    assert [len(panel) for panel in panels] == [12, 12, 11]  # not all were timed at both
    assert leaderboard_plot.in_color(made, panels) == ["method 0", "tome", "quick", "cheap"]
    legends = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.legend", lambda figure, handles, labels, **how: legends.append(list(labels))
    )
    leaderboard_plot.plot(made, tmp_path / "plot.png")
    assert legends == [["method 0", "tome", "quick", "cheap", "dense, tuned", leaderboard_plot.OTHERS]]
    lines = _lines(made, panels)
    others = [line for line in lines if line.get_label() == leaderboard_plot.OTHERS]
    named = [line for line in lines if line.get_label() in legends[0][:-2]]
    assert len(others) == 8 and {line.get_color() for line in others} == {leaderboard_plot.MUTED}
    assert max(line.get_zorder() for line in others) < min(line.get_zorder() for line in named)
    made.cells += [
        replace(first, method="equal", accuracy=0.5),
        replace(first, method="hidden", accuracy=0.01, cost=0.1),
    ]
    panels = [leaderboard_plot.points_of(made, True, scale) for scale in leaderboard_plot.scales(made, True)]
    assert "hidden" in panels[0]  # the cheapest, and below the frame
    assert leaderboard_plot.in_color(made, panels) == ["method 0", "tome", "quick", "cheap", "equal"]


def _lines(made, panels):
    axis, scale = new_figure(2, 2).subplots(), leaderboard_plot.scales(made, True)[0]
    leaderboard_plot._draw(axis, made, True, scale, panels[0], leaderboard_plot.in_color(made, panels))
    return axis.get_lines()


def test_a_cascade_for_every_budget_is_drawn_at_each():
    at = [AtBudget(budget=one, accuracy=one, cost=one, at_random=0.1, cost_at_random=one) for one in (0.5, 0.4, 0.3)]
    looks, made = Looks(accuracy=[0.5], cost=[0.3], shares=[1.0], at_random=0.5, at=at), board()
    made.cells = [replace(made.cells[0], tuned=True, method="cascade-every", looks=looks)]
    for scale, points in ((leaderboard_plot._costs(), 3), (leaderboard_plot._times(2), 1)):
        axis = new_figure(2, 2).subplots()
        leaderboard_plot._draw(
            axis, made, True, scale, leaderboard_plot.points_of(made, True, scale), ["cascade-every"]
        )
        (line,) = (line for line in axis.get_lines() if line.get_label() == "cascade-every")
        assert len(line.get_xdata()) == points
        assert points == 1 or (list(line.get_xdata()), list(line.get_ydata())) == ([0.3, 0.4, 0.5], [30.0, 40.0, 50.0])
