"""The kind of results that recipes/runtimes.py writes, and its table: what gates gain in each runtime and number format."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..measure.ways import WayScore, WayTime
from .markdown import ABSENT
from .names import processor, short
from .schema import Results
from .tables import MEASURED, of


DENSE, OPEN, GATED, FIXED = "dense", "gates open", "gated", "fixed merges"  # as in deploy/ways.py


@dataclass(kw_only=True)
class Runtimes(Results):
    """runtimes.json of recipes/runtimes.py.

    Attributes:
        model: folder, Hub id, or a size of random weights. decides: what its gates do. random: whether weights are, so that
            only times say something.
        images, checked: how many were timed, and how many predictions are of. fixed: formats whose merges are fixed where gates
            are at work; PyTorch has both states.
        times, scores: of each way; scores [] where none was asked for.
    """

    kind: ClassVar[str] = "runtimes"
    model: str
    decides: str
    random: bool
    dataset: str
    images: int
    checked: int
    fixed: list[str]
    times: list[WayTime]
    scores: list[WayScore]

    def time(self, runtime, precision, gates, batch_size):
        """The `WayTime`, or None."""
        wanted = (runtime, precision, gates, batch_size)
        return next(
            (one for one in self.times if (one.runtime, one.precision, one.gates, one.batch_size) == wanted), None
        )

    def score(self, runtime, precision, gates):
        """The `WayScore`, or None."""
        wanted = (runtime, precision, gates)
        return next((one for one in self.scores if (one.runtime, one.precision, one.gates) == wanted), None)


class Row(NamedTuple):
    """A runtime, number format and batch size of a model; the times are None where that state is not there."""

    runtime: str
    precision: str
    batch_size: int
    dense: WayTime | None
    open: WayTime | None
    gated: WayTime
    fastest: WayTime  # dense, in this number format, of all runtimes
    fixed: bool
    scores: tuple  # of dense and gated, None where there are none

    def gain(self, rival):
        """How many times as fast as another `WayTime`."""
        return rival.ms / self.gated.ms


def rows_of(results):
    """A `Row` for each, of what has gates at work."""
    found, formats = [], {"ONNX Runtime": "onnx", "OpenVINO": "openvino"}
    for gated in results.times:
        if gated.gates not in (GATED, FIXED):
            continue
        way, size = (gated.runtime, gated.precision), gated.batch_size
        rivals = [
            one
            for one in results.times
            if one.gates == DENSE and one.batch_size == size and _bits(one) == _bits(gated)
        ]
        if rivals:
            found.append(
                Row(
                    *way,
                    size,
                    results.time(*way, DENSE, size),
                    results.time(*way, OPEN, size) if gated.gates == GATED else None,
                    gated,
                    min(rivals, key=lambda one: one.ms),
                    gated.gates == FIXED or formats.get(gated.runtime) in results.fixed,
                    tuple(results.score(*way, gates) for gates in (DENSE, gated.gates)),
                )
            )
    return found


def _bits(time):
    """ "int8" of both kinds of it."""
    return time.precision.partition(" ")[0]


def _ms(time):
    if time is None:
        return ABSENT
    return f"{time.ms:.1f}" + (f" ({time.how})" if time.how else "")


def _top1(row):
    return ", ".join(
        ABSENT if one is None or one.accuracy is None else f"{100 * one.accuracy:.2f}" for one in row.scores
    )


TOP1 = "top-1 dense, gated"
GAINS = {  # of `Runtimes` and a `Row`
    "model": lambda results, row: short(results.model) + " (random weights)" * results.random,
    "decides": lambda results, row: results.decides,
    "runtime": lambda results, row: row.runtime + ", fixed merges" * row.fixed,
    "number format": lambda results, row: row.precision,
    "batch": lambda results, row: row.batch_size,
    "cost": lambda results, row: f"{row.gated.cost:.3f}",
    "dense, ms of an image": lambda results, row: _ms(row.dense),
    "gates open": lambda results, row: _ms(row.open),
    "gates at work": lambda results, row: _ms(row.gated),
    "gain there": lambda results, row: ABSENT if row.dense is None else f"{row.gain(row.dense):.2f}×",
    "of the MACs' promise": lambda results, row: (
        ABSENT if row.dense is None else f"{row.gain(row.dense) * row.gated.cost / row.dense.cost:.2f}"
    ),
    "over the fastest dense of all": lambda results, row: f"{row.gain(row.fastest):.2f}× ({row.fastest.runtime})",
    TOP1: lambda results, row: _top1(row),
}
EVERYWHERE = GAINS | {
    "same prediction as PyTorch": lambda results, row: (
        ABSENT if row.scores[1] is None or row.scores[1].same is None else f"{row.scores[1].same:.1%}"
    ),
    "images timed, predicted": lambda results, row: f"{results.images}, {results.checked} of {results.dataset}",
    "threads": lambda results, row: results.threads,
    "device": lambda results, row: processor(results),
    **of({name: MEASURED[name] for name in ("seed", "commit", "command")}),
}
MEANING = (
    "Timed in turns in one run, on different images; in brackets the fastest way to run a batch there (*streams*: images one by one, "
    "in parallel; *batch*: together; *batch in parts*: a part for each thread). *Dense*: the plain ViT on the images as they come, in the "
    "same runtime and number format; *of all*: the fastest dense one of all runtimes timed, in that number format. *Gates open*: what "
    "gates themselves take. *Fixed merges*: as many for every image. Where they are, there is no open state. Top-1 is of the images predicted, one by one."
)
GAINED_EVERYWHERE = (
    "In each runtime the way that is fastest at the smallest batch: milliseconds of an image, of the plain ViT there in the same number "
    "format → with gates at work, and how many times as fast that is. *Fixed merges*: as many for every image, so that the runtime knows "
    "all sizes ahead. Of random weights the times alone say something. Other number formats and ways, gates open among them, stand "
    "in [all tables](recipes/README.md#results)."
)


def front_rows(found):
    """A row for each model and runtime, of its fastest way; the batch sizes stand beside each other."""
    made, sizes = [], sorted({time.batch_size for results in found for time in results.times})
    for results in found:
        ways = {}
        for row in rows_of(results):
            ways.setdefault(row.runtime, {}).setdefault((row.precision, row.fixed), {})[row.batch_size] = row
        for by_way in ways.values():
            by_size = _fastest(list(by_way.values()))
            first = next(iter(by_size.values()))
            shown = {name: GAINS[name](results, first) for name in ("model", "runtime", "number format", "cost")}
            shown |= {f"batch {size}": _gained(by_size.get(size)) for size in sizes}
            shown[TOP1] = GAINS[TOP1](results, first)
            made.append(
                shown | {"device": f"{processor(results)}, {results.threads} threads", "commit": results.commit}
            )
    return made


def _fastest(ways):
    """Of batch size -> `Row` of several ways the one that is fastest at the smallest batch, beside a dense model if any is."""
    smallest = min(size for by_size in ways for size in by_size)
    there = [by_size for by_size in ways if smallest in by_size]
    compared = [by_size for by_size in there if by_size[smallest].dense is not None]
    return min(compared or there, key=lambda by_size: by_size[smallest].gated.ms)


def _gained(row):
    if row is None or row.dense is None:
        return ABSENT
    return f"{row.dense.ms:.1f} → {row.gated.ms:.1f}: {row.gain(row.dense):.2f}×"


def runtime_items(found):
    """Arguments of the columns of `EVERYWHERE`."""
    return [(results, row) for results in found for row in rows_of(results)]
