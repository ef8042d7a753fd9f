"""The search for a shift: near ones with few forwards, far ones too, and the ends where no shift reaches the target."""

import math

import pytest

from hf_dynvit.training.shifts import WIDEST, Shifts


class Curve(Shifts):
    """Shifts of no model: the mean is a function of the shift, and which shifts are asked for is kept."""

    def __init__(self, mean):
        super().__init__(None, [])
        self.of, self.asked = mean, []

    def mean(self, shift):
        self.asked.append(shift)
        return self.of(shift)


def logistic(middle):
    return lambda shift: 1 / (1 + math.exp(middle - shift))


@pytest.mark.parametrize("middle, most", [(0.0, 1), (0.2, 4), (-0.2, 4), (3.0, 7), (-7.0, 9), (15.0, 11)])
def test_a_target_is_met_the_sooner_the_nearer_it_is(middle, most):
    curve = Curve(logistic(middle))
    shift, mean = curve.nearest(0.5, 0.002)
    assert mean == curve.of(shift) == pytest.approx(0.5, abs=0.002) and len(curve.asked) <= most
    assert len(set(curve.asked)) == len(curve.asked)


@pytest.mark.parametrize("mean, end", [(0.7, -WIDEST), (0.2, WIDEST)])
def test_where_no_shift_reaches_the_target_the_ends_are_tried_and_the_nearest_mean_stays(mean, end):
    curve = Curve(lambda shift: mean)
    assert curve.nearest(0.5, 0.002) == (0.0, mean) and end in curve.asked


def test_several_targets_share_what_was_tried():
    curve = Curve(logistic(1.0))
    found = [curve.nearest(target, 0.002)[0] for target in (0.5, 0.2, 0.8)]
    assert found[1] < found[0] < found[2] and len(set(curve.asked)) == len(curve.asked) <= 15


def test_means_that_move_in_steps_give_the_nearest_there_is():
    curve = Curve(lambda shift: 0.3 if shift < 2.345 else 0.6)
    shift, mean = curve.nearest(0.5, 0.002)
    assert mean == 0.6 and shift >= 2.345
