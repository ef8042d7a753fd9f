"""`choose_in_time`: at which size of images, with gates or without, a time on this device is spent best.

Half of the multiply-accumulates are not half of the time: a smaller image saves time in every layer alike, gates cost some
before they save any. Which is nearer to the dense model in the same time depends on device and number of images.
"""

from typing import NamedTuple

from ..measure.layer_times import clocked
from ..model.configuration_dynvit import pair
from .resolution import choose_resolution
from .timed_calibration import NEAR, OutOfReach


LEAST_SIDE = 0.5  # of the images' side: smaller ones are not tried


class Place(NamedTuple):
    """What is tried: a size of images, None for as they come, with gates or without."""

    resolution: int | None
    gates: bool

    def __str__(self):
        size = f"{self.resolution} px" if self.resolution else "images as they come"
        return size if self.gates else f"{size}, without gates"


def choose_in_time(dense, gated, plain, batches, milliseconds, batch_size):
    """The `Trial` nearest to the dense model's predictions in that time, and all of them; their `resolution` is a `Place`.

    Without gates the largest size is tried whose forward is fast enough by the clock.

    Args:
        dense: the model without gates. batches: list of `pixel_values` (B, channels, height, width); no labels are used.
        gated: size -> a model calibrated to the time, or `OutOfReach`. plain: size -> the model without gates.
        milliseconds: mean time of an image. batch_size: images of a forward.

    Raises:
        OutOfReach: at every size.
    """
    side, patch = pair(dense.config.image_size)[0], pair(dense.config.patch_size)[0]
    sizes = [None, *range(side - patch, round(LEAST_SIDE * side) - 1, -patch)]
    models, missed = {}, []
    for size in sizes:
        try:
            models[Place(size, True)] = gated(size)
        except OutOfReach as error:
            missed.append(f"{Place(size, True)}: {error}")
    for size in sizes:
        model, forwards = plain(size), [batches[0][:batch_size]]
        if clocked(model, forwards) <= milliseconds * (1 + NEAR):
            models[Place(size, False)] = model
            break
    if not models:
        raise OutOfReach(f"{milliseconds} ms are out of reach at every size of images: {'; '.join(missed)}")
    return choose_resolution(dense, models.get, list(models), batches)
