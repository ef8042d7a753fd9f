"""`choose_in_time`: at which size of images, with gates or without, a time on this device is spent best.

Half of the multiply-accumulates are not half of the time: a smaller image saves time in every layer alike, gates cost some
before they save any. Which is nearer to the dense model in the same time depends on device and number of images.
"""

from typing import NamedTuple

import torch

from ..measure.layer_times import clocked_together
from ..model.configuration_dynvit import pair
from .resolution import choose_resolution, largest_size
from .timed_calibration import CLOCKED_IMAGES, WRONG, OutOfReach


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

    All keep the time by the clock, which goes for all in the same turns: a machine whose speed changes between two models
    would decide for the one that had the better minute. Without gates one size is tried, the largest that keeps the time.

    Args:
        dense: the model without gates. batches: list of `pixel_values` (B, channels, height, width); no labels are used.
        gated: size -> a model calibrated to the time, or `OutOfReach`.
        plain: size -> the model without gates.
        milliseconds: mean time of an image. batch_size: images of a forward.

    Raises:
        OutOfReach: at every size. ValueError: images that are not square, or too few.
    """
    (side, width), (patch, patch_width) = pair(dense.config.image_size), pair(dense.config.patch_size)
    images = torch.cat(batches)[: max(CLOCKED_IMAGES, batch_size)]
    if side != width or patch != patch_width or len(images) < batch_size:
        raise ValueError(
            f"a size is chosen for square images and patches, by {batch_size} images at least: got "
            f"{dense.config.image_size}, {dense.config.patch_size} and {len(images)} images"
        )
    sizes = [None, *range(largest_size(dense.config) - patch, round(LEAST_SIDE * side) - 1, -patch)]
    models, missed = {}, []
    for size in sizes:
        place = Place(size, True)
        try:
            models[place] = gated(size)
        except OutOfReach as error:
            missed.append(f"{place}: {error}")
    models |= {Place(size, False): plain(size) for size in sizes}
    whole = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    times = clocked_together(models, whole)
    in_time = [place for place in models if times[place] <= milliseconds * (1 + WRONG)]
    missed += [f"{place}: {times[place]:.3f} ms by the clock" for place in models if place not in in_time]
    if not in_time:
        raise OutOfReach(f"{milliseconds} ms are out of reach, down to images of {sizes[-1]} px: {'; '.join(missed)}")
    kept = [place for place in in_time if place.gates] + [place for place in in_time if not place.gates][:1]
    return choose_resolution(dense, models.get, kept, batches)
