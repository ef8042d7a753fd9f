"""The kind of results that recipes/points.py writes, and its table: what is chosen by products, and what by the clock."""

from dataclasses import dataclass
from typing import ClassVar

from ..training.points import Choice, Point
from .names import processor, short
from .schema import Results
from .tables import MEASURED, of


@dataclass(kw_only=True)
class Points(Results):
    """points.json of recipes/points.py.

    Attributes:
        model: folder or Hub id of the plain ViT. gates: preset or list of them. kernels: whether compiled ones were at work. images: how many of train were used to calibrate
            and to choose. reported, dataset, split: how many images the accuracy is of, of which data.
        dense: top-1 of the model as it is. points, choices: of training/points.py.
    """

    kind: ClassVar[str] = "points"
    model: str
    gates: str
    kernels: bool
    dataset: str
    split: str
    images: int
    reported: int
    dense: float
    points: list[Point]
    choices: list[Choice]

    def batch_sizes(self):
        """Those that points are chosen for."""
        return sorted({one.batch_size for one in self.choices})

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
    return f"{where}: {100 * point.accuracy:.2f} at {point.cost_reported:.3f}, {point.ms_reported[str(batch_size)]:.1f} ms"


def _speedup(results, choice):
    first, second = results.points[choice.by_cost], results.points[choice.as_near]
    return f"{first.ms_reported[str(choice.batch_size)] / second.ms_reported[str(choice.batch_size)]:.2f}×"


def _gain(results, choice):
    first, second = results.points[choice.by_cost], results.points[choice.in_time]
    return f"{100 * (second.accuracy - first.accuracy):+.2f}"


POINTS = {  # of `Points` and a `Choice`
    "model": lambda results, choice: short(results.model),
    "gates": lambda results, choice: results.gates + ", with kernels" * results.kernels,
    "dense": lambda results, choice: f"{100 * results.dense:.2f}",
    "budget": lambda results, choice: choice.budget,
    "batch": lambda results, choice: choice.batch_size,
    "by products": lambda results, choice: _shown(results, choice.by_cost, choice.batch_size),
    "nearest in its time": lambda results, choice: _shown(results, choice.in_time, choice.batch_size),
    "top-1 gained": _gain,
    "fastest as near": lambda results, choice: _shown(results, choice.as_near, choice.batch_size),
    "time gained": _speedup,
    "images": lambda results, choice: f"{results.reported:,} ({results.dataset}, {results.split})",
    "threads": lambda results, choice: results.threads,
    "device": lambda results, choice: processor(results),
    **of({name: MEASURED[name] for name in ("dtype", "seed", "commit", "command")}),
}
POINTS_MEANING = (
    "The same model and gates at several sizes of images and budgets, untrained. *By products*: of all that cost no more than the budget "
    "the one nearest to the dense model's predictions. *Nearest in its time*: of all that take no longer than that one by the clock. "
    "*Fastest as near*: of all that are as near as it. Chosen on images of train, by their predictions and by a clock that went for all in "
    "the same turns; shown with top-1, cost and a second clock, again in turns, on the images that are reported."
)
