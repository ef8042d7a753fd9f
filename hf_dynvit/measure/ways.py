"""What is measured of one way to run a model: a runtime, a number format, and gates at work, open or not there."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class WayTime:
    """Milliseconds of an image in batches of one size.

    Attributes:
        runtime, precision, gates: the way (deploy/ways.py). how: the fastest of several to run a batch there, "" of one.
        cost: mean of the timed images, 1 where nothing counts it. rounds: timed, each on one batch.
    """

    runtime: str
    precision: str
    gates: str
    batch_size: int
    how: str
    ms: float
    cost: float
    rounds: int


@dataclass(kw_only=True)
class WayScore:
    """Predictions of a way.

    Attributes:
        same: share of images with the prediction of PyTorch in float32, gates alike; None where that is not among the ways.
        accuracy: top-1; None where labels are not known.
    """

    runtime: str
    precision: str
    gates: str
    images: int
    same: float | None
    accuracy: float | None
