"""The table of latencies that a search counts milliseconds by: a file, what the same search has measured, or measured now."""

from dataclasses import asdict
from pathlib import Path

import torch

from ..measure.forwards import DTYPES
from ..measure.latency import LatencyTable
from ..measure.layer_times import circumstances, measure_latencies, to_serve
from .masks import differences


LATENCY_FILE = "latency.json"


def needs_latencies(args, reward):
    """Whether a search counts milliseconds, as its objective or in its `Reward`.

    Raises:
        ValueError: it does not, and a table is given.
    """
    needed = args.objectives.endswith("+milliseconds") or reward.cost_weights == "latency"
    if args.latency and not needed:
        raise ValueError(
            f"latency {args.latency!r} says how long masks take, which objectives {args.objectives!r} do not ask: take "
            "error+milliseconds or reward+milliseconds"
        )
    return needed


def latencies_of(model, args, batches):
    """The `LatencyTable` of a search, which is kept in its folder: one search has one measurement.

    Args:
        model: a `DynViTForImageClassification`, on the device of the search. args: `SearchArguments`.
        batches: list of (pixel_values, labels) to choose on, of which the first images are timed.

    Raises:
        ValueError: a table of another model, one that the folder holds and that was measured under other circumstances,
            or fewer images than `args.latency_batch_size`.
    """
    if args.latency:
        table = LatencyTable.load(args.latency)
        table.check(model)
        return table
    model, kept, wanted = (
        to_serve(model, DTYPES[args.dtype]),
        Path(args.output) / LATENCY_FILE,
        args.latency_batch_size,
    )
    if not kept.exists():
        images = torch.cat([pixel_values for pixel_values, _ in batches[:wanted]])[:wanted]
        if len(images) < wanted:
            raise ValueError(f"latency_batch_size must be in 1..{len(images)}, the images to choose on, got {wanted}")
        return measure_latencies(model, images.to(model.dtype))
    table, now = LatencyTable.load(kept), circumstances(model, wanted)
    other = differences({name: asdict(table)[name] for name in now}, now)
    if other:
        raise ValueError(f"{kept} was measured under other circumstances ({'; '.join(other)}): give another output")
    return table
