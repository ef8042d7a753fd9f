"""Which method is fastest at how little accuracy lost: of one machine, against today's dense models, by the mean of the seeds."""

from dataclasses import replace

import pytest
from made_results import speed
from test_front import board, cell

from hf_dynvit.measure.dense import AHEAD, AHEAD_EAGER, OURS, TUNED
from hf_dynvit.report.fastest import fastest_rows, fastest_words


HERE, THERE = "a CPU, 2 threads, float32", "another CPU, 2 threads, float32"
DENSE = (cell("dense", 0.9, 1.0), cell("dense", 0.92, 1.0, seed=1))


def timed(cell, *gains, on=HERE, rivals=(AHEAD, AHEAD_EAGER), dense_cost=0.93, program_ms=None):
    """A cell that is so many times as fast at batch 1, 2, ... as the fastest dense model, ours."""
    speeds = []
    for size, gain in enumerate(gains, 1):
        ways = dict.fromkeys(("eager", "sdpa", *rivals), 3.5 * gain) | {OURS: 3.0 * gain}
        speeds.append(replace(speed(size, dense_ms=ways), dense_cost=dense_cost, program_ms=program_ms))
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


@pytest.mark.parametrize("other", [{"on": THERE}, {"rivals": (AHEAD,)}, {"dense_cost": 1.0}])
def test_what_was_timed_elsewhere_or_against_older_dense_models_does_not_compete(other):
    quick, slow = timed(cell("tome", 0.95), 9.0, **other), timed(cell("merge", 0.95), 1.2)
    same = timed(cell("evit", 0.95), 1.1)
    assert shown(quick, slow, same)[0] == ["0", "merge at 0.5: 1.20×, 95.00"]
    words = fastest_words([board(*DENSE, quick, slow, same, timed(cell("merge", 0.9, 0.65), 1.0))])
    assert words.endswith("today's dense models: `merge` at 0.65, 0.5; `evit` at 0.5.")


def test_a_size_at_which_a_method_was_not_timed_is_that_of_the_others():
    one, two = timed(cell("tome", 0.95), 2.0), timed(cell("merge", 0.95), 1.2, 1.3)
    assert shown(one, two)[0] == ["0", "tome at 0.5: 2.00×, 95.00", "merge at 0.5: 1.30×, 95.00"]
    assert shown(one, replace(two, throughput=two.throughput[1:]))[0][2] == "merge at 0.5: 1.30×, 95.00"


def test_a_gpu_has_a_compiled_dense_model_of_its_own():
    assert shown(timed(cell("tome", 0.95), 2.0, rivals=())) == []
    assert shown(timed(cell("tome", 0.95), 2.0, rivals=(TUNED,)))[0] == ["0", "tome at 0.5: 2.00×, 95.00"]


def test_without_a_tuned_dense_model_or_times_there_is_no_row():
    assert fastest_rows([board(timed(cell("merge", 0.9), 1.2))]) == [] == fastest_rows([board(*DENSE)])
    untrained = timed(cell("merge", 0.95, tuned=False), 2.0)
    assert fastest_rows([board(*DENSE, untrained)]) == []
