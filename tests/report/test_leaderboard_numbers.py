"""The table in full of a leaderboard: all that a reader may ask of a method at a budget, from what was measured."""

from dataclasses import replace

from made_results import given, speed
from test_leaderboard_plot import board

from hf_dynvit.report.leaderboard import sections
from hf_dynvit.report.leaderboard_numbers import number_rows


def test_a_row_has_every_number_of_a_method_at_a_budget():
    dense, merge = number_rows(board())
    assert dense["method"] == "dense" and dense["top-1"] == "60.00" and dense["cost"] == "1.000"
    assert (
        dense["images/s at batch 2"] == dense["MiB at batch 1"] == "–"
    )  # the checkpoint is a rival of each row that is timed
    assert merge["method"] == "merge" and merge[""] == "tuned" and merge["budget"] == 0.5
    assert merge["top-1"] == "55.00" and merge["cost"] == "0.500" and merge["GMACs"] == "0.500"
    # 3 ms of a packed batch of two; the dense model takes twice as long.
    assert merge["images/s at batch 2"] == "666.7 (333.3)" and merge["MiB at batch 2"] == "15 (20)"


def test_the_faster_way_counts_and_is_named():
    made = board()
    (cell,) = made.cells
    made.cells = [replace(cell, throughput=[speed(2, gain=2.0, program_ms=2.0)])]
    assert number_rows(made)[1]["images/s at batch 2"] == "1000.0 compiled (333.3)"
    slow = replace(cell, seed=1, throughput=[speed(2, gain=2.0)])  # no program: all seeds are shown packed
    assert number_rows(replace(made, cells=[*made.cells, slow]))[1]["images/s at batch 2"] == "666.7 (333.3)"
    made.cells = [replace(cell, throughput=[speed(2, gain=2.0, program_ms=4.0)])]
    assert number_rows(made)[1]["images/s at batch 2"] == "666.7 (333.3)"


def test_seeds_are_one_row_and_those_that_were_timed_give_its_times():
    made = board()
    (cell,) = made.cells
    slower = replace(cell, seed=1, accuracy=0.57, throughput=[speed(2, gain=1.0)])
    made.cells = [cell, slower, replace(cell, seed=2, accuracy=0.56, throughput=[])]
    (row,) = number_rows(made)[1:]
    assert row["top-1"] == "56.00 ± 1.00 (3 seeds)" and row["images/s at batch 2"] == "666.7 (500.0)"


def test_costs_that_differ_by_image_show_how_far():
    made = board()
    made.cells = [
        replace(made.cells[0], **vars(given(0.5, 0.5)) | {"cost_std": 0.1, "cost_min": 0.2, "cost_max": 0.9})
    ]
    assert number_rows(made)[1]["cost"] == "0.500 ± 0.100 (0.20–0.90)"


def test_few_classes_have_no_top_5():
    made = board()
    made.cells = [replace(made.cells[0], accuracy_top5=None)]
    assert number_rows(made)[1]["top-5"] == "–"


def test_the_section_of_a_board_has_it_before_its_commands():
    text = "\n\n".join(sections([board()]))
    assert text.index("| method |  | budget | top-1 | top-5 | cost |") < text.index("1. `python ...`")
