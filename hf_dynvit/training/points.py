"""Operating points of one model: sizes of images and budgets of its gates, with what each costs in products and in time.

Multiply-accumulates and milliseconds may rank them differently: gates take time before they save any, and a smaller image
saves it in every layer. Which point is best is therefore asked of both; the clock goes for all points in the same turns.
"""

import math
from dataclasses import dataclass, field

import torch

from ..measure.layer_times import ROUNDS, clocked_together
from ..measure.timing import interleaved_medians, with_progress
from .resolution import TOO_DEAR, largest_size, nearest_size, sizes_for, trial


@dataclass
class Point:
    """One size of images with gates at a budget, or without.

    Attributes:
        resolution: None: images as they come. budget: mean cost that thresholds were brought to; None: no gates.
        cost: mean over the images. distance: mean KL divergence from the dense model's predictions, nats.
        ms: batch size, in words -> milliseconds of an image, by which points are chosen. accuracy, cost_reported, ms_reported: on the
            images that are reported, of points that are chosen.
    """

    resolution: int | None
    budget: float | None
    cost: float
    distance: float
    ms: dict = field(default_factory=dict)
    accuracy: float | None = None
    cost_reported: float | None = None
    ms_reported: dict = field(default_factory=dict)


def places(config, budgets):
    """Size of images (None: as they come) -> the budgets that gates are tried at there, and [None] beside them: no gates.

    Args:
        config: of a ViT with square images. budgets: mean costs, relative to the dense model on images as they come.
    """
    found = {None: [*sorted(budgets), None]}
    for budget in sorted(budgets):
        for size in sizes_for(config, budget)[1:]:
            found.setdefault(size, []).append(budget)
        size = nearest_size(config, budget)
        if size not in (None, largest_size(config)):
            found.setdefault(size, [])
    return {size: sorted(set(here) - {None}) + [None] for size, here in found.items()}


def measured_points(dense, build, tried, batches):
    """[(`Point`, its model)], by batches of `pixel_values`; no labels are used.

    Args:
        dense: the model without gates. build: (size, budget) -> a model that meets the budget, without gates for None; or
            None, and there is no point. tried: of `places`.
    """
    found = []
    with torch.no_grad():
        wanted = [dense(batch).logits for batch in batches]
    for size, budgets in tried.items():
        for budget in budgets:
            model = build(size, budget)
            if model is not None:
                met = trial(size, model, wanted, batches)
                found.append((Point(size, budget, met.cost, met.distance), model))
    return found


def clock_points(points, models, batches, into="ms", rounds=ROUNDS):
    """Time points in the same turns.

    Args:
        points, models: place -> each, models in the state to be timed in. batches: batch size -> list of `pixel_values` of so
            many images. into: the attribute of points that takes the milliseconds. rounds: that are timed.
    """
    for size, given in batches.items():
        for place, ms in clocked_together(models, given, rounds=rounds, medians=_medians).items():
            getattr(points[place], into)[str(size)] = ms


def _medians(calls, rounds):
    return interleaved_medians(with_progress(calls, rounds), rounds)


@dataclass
class Choice:
    """What is chosen for a budget at one batch size, as places in the list of points.

    Attributes:
        by_cost: the nearest to the dense model's predictions of those that cost at most `TOO_DEAR` more than the budget.
        in_time: the nearest of those that take no longer than it. as_near: the fastest of those that are as near as it.
    """

    budget: float
    batch_size: int
    by_cost: int
    in_time: int
    as_near: int


def choices(points, budgets, batch_sizes):
    """A `Choice` for each budget and batch size; every budget is met by a point."""

    def far(index):
        distance = points[index].distance
        return math.isnan(distance), distance

    found = []
    for budget in sorted(budgets, reverse=True):
        by_cost = min(_where(points, lambda point, most=budget + TOO_DEAR: point.cost <= most), key=far)
        for size in map(str, batch_sizes):
            longest, furthest = points[by_cost].ms[size], points[by_cost].distance
            in_time = min(_where(points, lambda point, of=size, most=longest: point.ms[of] <= most), key=far)
            near = _where(points, lambda point, most=furthest: point.distance <= most) or [by_cost]
            as_near = min(near, key=lambda index, of=size: points[index].ms[of])
            found.append(Choice(budget, int(size), by_cost, in_time, as_near))
    return found


def _where(points, true):
    return [index for index, point in enumerate(points) if true(point)]
