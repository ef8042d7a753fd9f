"""Calibration in milliseconds: the shift of all gates' thresholds at which an image takes as long as it may on this device."""

from functools import partial
from typing import NamedTuple

import torch
from transformers.utils import logging

from ..measure.latency import LatencyTable
from ..measure.layer_times import clocked, measure_latencies, served
from ..measure.precision import in_own_precision
from ..measure.timing import interleaved_medians
from ..model.budgets import shift_gates
from .shifts import WIDEST, Shifts


logger = logging.get_logger("hf_dynvit.training.calibration")
NEAR = 0.002  # of the milliseconds, within which the search for a shift ends
CLOCKED_IMAGES = 32
TOO_FAR = 0.02  # of the milliseconds: a time that far from what is wanted is another one
WRONG = 0.05  # of the clock's milliseconds, from which on the table is corrected


class OutOfReach(ValueError):
    """A time that no thresholds give, or a budget that a method cannot cost."""


class TimedCalibration(NamedTuple):
    """What a calibration in milliseconds found.

    Attributes:
        shift: added to the logits of all learned gates. cost: the mean cost that it gives on the images.
        milliseconds: the mean time of an image, as the table predicts it.
        clock: the same of the first images, by the clock. clock_predicted: of these by the table.
        latencies: the table. correction: the factor by which the clock has corrected it, 1 where it was near.
    """

    shift: float
    cost: float
    milliseconds: float
    clock: float
    clock_predicted: float
    latencies: LatencyTable
    correction: float

    @property
    def error(self):
        """Of the prediction, relative to the clock."""
        return self.clock_predicted / self.clock - 1


def calibrate_milliseconds(model, batches, milliseconds, batch_size=1, latencies=None, medians=interleaved_medians):
    """Shift the biases of all learned gates so that the mean predicted time of an image is what is wanted.

    Decisions say how many tokens each layer computes, and a table of this device how long that takes. The result is
    checked against the clock; where that says something else, as it does of batches whose images keep different numbers
    of tokens, the table is corrected by the factor, and the search and the check are done once more.

    Args:
        model: a model with learned gates, its table of budgets is dropped; in evaluation mode, on the device and in the dtype to serve it in, prepacked if
            it will be.
        batches: list of `pixel_values` (B, channels, height, width), in random order: the first are clocked.
        milliseconds: mean time of an image: that of a forward of `batch_size` images, divided by their number.
        latencies: the `LatencyTable` of this model; None: it is measured.
        medians: what times calls, as `timing.interleaved_medians`.

    Returns:
        A `TimedCalibration`.

    Raises:
        ValueError: a time that is not positive, too few images, a table of another batch size or model, or a time out of
            reach; it names the reach.
    """
    if not 0 < milliseconds < float("inf"):
        raise ValueError(f"milliseconds must be positive and finite, got {milliseconds!r}")
    images = torch.cat([batch[:CLOCKED_IMAGES] for batch in batches])[: max(CLOCKED_IMAGES, batch_size)]
    if not 1 <= batch_size <= len(images):
        raise ValueError(f"batch_size must be in 1..{len(images)}, the images that there are, got {batch_size}")
    if latencies is not None and latencies.batch_size != batch_size:
        raise ValueError(
            f"the latency table is of batches of {latencies.batch_size}, it says nothing of batches of {batch_size}"
        )
    if latencies is not None:
        latencies.check(model)
    timed = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    with served(model), in_own_precision(model):  # shifts are found for what the clock measures
        latencies, correction = latencies or measure_latencies(model, images[:batch_size], medians=medians), 1.0
        for last in (False, True):
            shifts = Shifts(model, batches, partial(latencies.milliseconds, model))
            _check_reach(shifts, milliseconds, batch_size)
            shift, predicted = shifts.nearest(milliseconds, NEAR * milliseconds)
            if abs(predicted - milliseconds) > TOO_FAR * milliseconds:
                raise OutOfReach(
                    f"{milliseconds} ms are out of reach: the nearest that the gates' thresholds give is {predicted:.3f} ms, for "
                    "they decide alike for many images, so that the time moves in steps"
                )
            clock = clocked(model, timed, shift, medians=medians)
            found = TimedCalibration(
                shift=shift,
                cost=Shifts(model, batches).mean(shift),
                milliseconds=predicted,
                clock=clock,
                clock_predicted=Shifts(model, timed, shifts.measure).mean(shift),
                latencies=latencies,
                correction=correction,
            )
            if last or abs(found.error) <= WRONG:
                break
            correction = clock / found.clock_predicted
            latencies = latencies.scaled(correction)
    model.config.budget_shifts = None
    shift_gates(model.learned_gates(), found.shift)
    say = logger.warning if abs(found.error) > WRONG else logger.info
    say(
        f"predicted {found.clock_predicted:.3f} ms for an image of a batch of {batch_size}, the clock says {found.clock:.3f} "
        f"({found.error:+.1%}); the table was corrected by a factor of {correction:.3f}"
    )
    return found


def _check_reach(shifts, milliseconds, batch_size):
    least, most = (shifts.mean(shift) for shift in (-WIDEST, WIDEST))
    if not least <= milliseconds <= most:
        raise OutOfReach(
            f"{milliseconds} ms are out of reach: by the latencies of this device the gates can bring an image of a batch "
            f"of {batch_size} to between {least:.3f} and {most:.3f} ms"
        )
