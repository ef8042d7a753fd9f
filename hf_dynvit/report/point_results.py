"""The kind of results that recipes/points.py writes, and its table: what is chosen by products, and what by the clock."""

from dataclasses import dataclass
from typing import ClassVar

from ..training.points import Choice, Point
from .markdown import ABSENT
from .names import processor, short
from .schema import Results
from .tables import MEASURED, of


@dataclass(kw_only=True)
class Points(Results):
    """points.json of recipes/points.py.

    Attributes:
        model: folder or Hub id of the plain ViT. gates: preset or list of them. kernels: whether compiled ones were at work.
        images: how many of train were used to calibrate and to choose. reported, dataset, split: how many images the
            accuracy is of, of which data.
        dense: top-1 of the model as it is; None, as that of points, where the measurement was interrupted.
        points, choices: of training/points.py.
    """

    kind: ClassVar[str] = "points"
    model: str
    gates: str
    kernels: bool
    dataset: str
    split: str
    images: int
    reported: int
    dense: float | None
    points: list[Point]
    choices: list[Choice]

    def chosen(self):
        """Places of all points that any `Choice` names, without repetition."""
        return sorted({place for one in self.choices for place in (one.by_cost, one.in_time, one.as_near)})


def point_items(found):
    """Arguments of the columns of `POINTS`."""
    return [(results, choice) for results in found for choice in results.choices]


def _shown(results, place, batch_size):
    point = results.points[place]
    where = "images as they come" if point.resolution is None else f"{point.resolution} px"
    where += ", no gates" if point.budget is None else ""
    cost = point.cost if point.cost_reported is None else point.cost_reported
    return f"{where}: {_percent(point.accuracy)} at {cost:.3f}, {point.ms_reported[str(batch_size)]:.1f} ms"


def _percent(accuracy):
    return ABSENT if accuracy is None else f"{100 * accuracy:.2f}"


def _time(results, choice, place):
    """By the second clock, in shares of what products choose."""
    size = str(choice.batch_size)
    return f"{results.points[place].ms_reported[size] / results.points[choice.by_cost].ms_reported[size]:.2f}"


def _gain(results, choice):
    """Top-1 and time of the nearest in time, beside what products choose."""
    first, second = (results.points[place].accuracy for place in (choice.by_cost, choice.in_time))
    gained = ABSENT if None in (first, second) else f"{100 * (second - first):+.2f}"
    return f"{gained} in {_time(results, choice, choice.in_time)} of the time"


POINTS = {  # of `Points` and a `Choice`
    "model": lambda results, choice: short(results.model),
    "gates": lambda results, choice: results.gates + ", with kernels" * results.kernels,
    "dense": lambda results, choice: _percent(results.dense),
    "budget": lambda results, choice: choice.budget,
    "batch": lambda results, choice: choice.batch_size,
    "by products": lambda results, choice: _shown(results, choice.by_cost, choice.batch_size),
    "nearest in its time": lambda results, choice: _shown(results, choice.in_time, choice.batch_size),
    "gained": _gain,
    "fastest as near": lambda results, choice: _shown(results, choice.as_near, choice.batch_size),
    "its time": lambda results, choice: _time(results, choice, choice.as_near),
    "images": lambda results, choice: f"{results.reported:,} ({results.dataset}, {results.split})",
    "threads": lambda results, choice: results.threads,
    "device": lambda results, choice: processor(results),
    **of({name: MEASURED[name] for name in ("dtype", "seed", "commit", "command")}),
}
POINTS_MEANING = (
    "The same model and gates at several sizes of images and budgets, untrained; of the last layer all compute what the classifier "
    "reads. *By products*: of all whose cost is at most 0.02 above the budget the one nearest to the dense model's predictions. *Nearest in "
    "its time*: of all that take no longer than that one by the clock. *Fastest as near*: of all that are as near as it. Chosen on images "
    "of train, by their predictions and by a clock that went for all in the same turns. Shown are top-1 and cost on the images that are "
    "reported, and a second clock there, again in turns: a choice is worth what both clocks say. *In … of the time*, *its time*: by the "
    "second clock, over what products choose."
)
