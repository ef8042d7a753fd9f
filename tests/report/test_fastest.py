"""Which method is fastest at how little accuracy lost: of one machine, against today's dense models, by the mean of the seeds."""

from dataclasses import replace

import pytest
from made_results import speed
from test_front import board, cell

from hf_dynvit.measure.dense import AHEAD, AHEAD_EAGER, OURS
from hf_dynvit.report.fastest import fastest_rows


HERE, THERE = "a CPU, 2 threads, float32", "another CPU, 2 threads, float32"
DENSE = (cell("dense", 0.9, 1.0), cell("dense", 0.92, 1.0, seed=1))


def timed(cell, *gains, on=HERE, rivals=(AHEAD, AHEAD_EAGER), program_ms=None):
    """A cell that is so many times as fast at batch 1, 2, ..."""
    ways = ("eager", "sdpa", *rivals, OURS)
    speeds = [
        replace(speed(size, dense_ms=dict.fromkeys(ways, 3.0 * gain)), program_ms=program_ms)
        for size, gain in enumerate(gains, 1)
    ]
    return replace(cell, throughput=speeds, timed_on=on)


def shown(*cells):
    return [list(row.values())[1:-1] for row in fastest_rows([board(*DENSE, *cells)])]


def test_the_fastest_of_those_that_lose_no_more_stands_at_each_batch_size():
    near, far = timed(cell("merge", 0.906), 1.2, 0.9), timed(cell("tome", 0.885, 0.3), 1.5, 2.0)
    assert shown(near, far) == [
        ["0", "–", "–"],
        ["0.5", "merge at 0.5: 1.20×, 90.60", "–"],  # slower than the dense model is nothing
        ["1", "merge at 0.5: 1.20×, 90.60", "–"],
        ["2", "merge at 0.5: 1.20×, 90.60", "–"],
        ["3", "tome at 0.3: 1.50×, 88.50", "tome at 0.3: 2.00×, 88.50"],
    ]
    assert fastest_rows([board(*DENSE, near, far)])[0]["device"] == HERE


def test_accuracy_is_that_of_all_seeds_and_a_compiled_model_the_faster_way():
    runs = timed(cell("merge", 0.95), 1.2, program_ms=1.0), cell("merge", 0.89, seed=1)  # 0.92 on average; 3.6 times
    rows = shown(*runs)
    assert rows[0] == ["0", "merge at 0.5: 3.60×, 92.00 ± 4.24"]
    assert shown(runs[0], cell("merge", 0.8, seed=1)) == [[loss, "–"] for loss in ("0", "0.5", "1", "2", "3")]
    both = timed(cell("merge", 0.95), 1.0), timed(cell("merge", 0.95, seed=1), 2.0)
    assert shown(*both)[0][1].startswith("merge at 0.5: 1.50×")


@pytest.mark.parametrize("other", [{"on": THERE}, {"rivals": (AHEAD,)}])
def test_what_was_timed_elsewhere_or_against_older_dense_models_does_not_compete(other):
    quick, slow = timed(cell("tome", 0.95), 9.0, **other), timed(cell("merge", 0.95), 1.2)
    same = timed(cell("evit", 0.95), 1.1)
    assert shown(quick, slow, same)[0] == ["0", "merge at 0.5: 1.20×, 95.00"]


def test_without_a_tuned_dense_model_or_times_there_is_no_row():
    assert fastest_rows([board(timed(cell("merge", 0.9), 1.2))]) == [] == fastest_rows([board(*DENSE)])
    untrained = timed(cell("merge", 0.95, tuned=False), 2.0)
    assert fastest_rows([board(*DENSE, untrained)]) == []
