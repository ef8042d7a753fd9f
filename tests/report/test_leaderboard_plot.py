"""The plot of a leaderboard marks what a method has to beat: the dense model, and the next smaller one where it is known."""

from dataclasses import replace

import pytest
from made_results import MEASURED, given, speed

from hf_dynvit.measure.dense import OURS
from hf_dynvit.report import Cell, Leaderboard, SmallerDense, leaderboard
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


def drawn(made, path, monkeypatch):
    """Panel -> label -> point of what is drawn as a star."""
    figures = []

    def kept(*size, **options):
        figures.append(new_figure(*size, **options))
        return figures[-1]

    monkeypatch.setattr(leaderboard, "new_figure", kept)
    leaderboard.plot(made, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    stars = [[line for line in axis.lines if line.get_marker() == "*"] for axis in figures[0].axes]
    return [{line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in lines} for lines in stars]


def test_dense_and_the_next_smaller_stand_where_they_were_measured(tmp_path, monkeypatch):
    by_cost, by_time = drawn(board(smaller=smaller(1, 2)), tmp_path / "plot.png", monkeypatch)
    assert by_cost == {"dense, as given": (1.0, 60.0), SMALLER: (pytest.approx(1 / 3), 50.0)}
    assert by_time == {"dense, as given": (3.0, 60.0), SMALLER: (0.75, 50.0)}


def test_without_times_of_that_batch_the_smaller_one_is_among_costs_alone(tmp_path, monkeypatch):
    by_cost, by_time = drawn(board(smaller=smaller(1)), tmp_path / "plot.png", monkeypatch)
    assert SMALLER in by_cost and set(by_time) == {"dense, as given"}
    by_cost, by_time = drawn(board(), tmp_path / "plot.png", monkeypatch)
    assert set(by_cost) == set(by_time) == {"dense, as given"}


def test_a_board_in_parts_has_the_smaller_model_of_any_and_says_what_it_reaches():
    other = replace(board().cells[0], seed=1)
    for parts in ([board(smaller=smaller(2)), board()], [board(), board(smaller=smaller(2))]):
        parts[1].cells.append(other)  # and the first one once more
        (joined,) = leaderboard.joined(parts)
        assert joined.smaller.model == "vit_small" and [cell.seed for cell in joined.cells] == [0, 1]
        text = "\n".join(leaderboard.sections(parts))
        assert "The next smaller dense model, vit_small, has 50.00 at 0.333 of the dense model's computation" in text
        assert ", at 0.75 measured ms per image, batch 2." in text


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
    by_cost, by_time = drawn(made, tmp_path / "plot.png", monkeypatch)
    assert by_cost == {"dense, tuned": (1.0, pytest.approx(70.0))} and by_time["dense, tuned"][0] == 3.0


def test_the_best_in_bold_has_met_the_budget():
    made = board()
    made.cells.append(replace(made.cells[0], method="dearer", accuracy=0.9, cost=0.53, throughput=[]))
    rows = leaderboard.accuracy_rows(made)
    assert [row["0.5"] for row in rows] == ["**55.00** at 0.500", "90.00 at 0.530"]
