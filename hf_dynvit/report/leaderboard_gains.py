"""The table of what the methods of ours gain on a board: over the best other one of the same cost, over their unlearned twins."""

import statistics
from typing import NamedTuple

from ..training.methods import DENSE, METHODS
from .markdown import ABSENT
from .names import counts_text, looks_text
from .rivals import counted, mean, percent


NEAR = 0.01  # relative cost: this far from its own a method is still taken at what it costs
GAINS = (
    "*Gains*, in points of top-1: each tuned method that learns the importance of tokens, against the best other one of the same cost "
    "(rules, the literature's, smaller images): where that is tuned at this cost, or on the line between its costs on both sides of "
    "it, or, without a higher one, as it is at a lower. It is chosen on the images that are reported, in its favour. A cascade's gain is of all it does: a second look, smaller "
    "images, importance. *Over its twin*: what learning importance is worth alone, against the same method without it. ± is the "
    "deviation over seeds (of a gain the root of the sum of both variances), where both have several; –: not run."
)


class Point(NamedTuple):
    """A method at a cost: top-1 of each seed, in points, and in words where it is from."""

    tops: list
    text: str


def gain_rows(board):
    """A row for each tuned method that learns importance, at each budget where another one stands against it."""
    curves = {method: cells for (method, tuned), cells in board.by_cell().items() if tuned}
    dense = next(iter(curves.get(DENSE, {}).values()), None)
    rows = []
    for budget in sorted({budget for cells in curves.values() for budget in cells}, reverse=True):
        for method in filter(learns_importance, curves):
            runs = curves[method].get(budget)
            others = (
                [_at(other, curves[other], mean(runs, "cost")) for other in curves if _is_rival(other)] if runs else []
            )
            best = max(filter(None, others), key=lambda other: statistics.mean(other.tops), default=None)
            twin = curves.get(twin_of(method), {}).get(budget)
            if best or (runs and twin):
                rows.append(
                    {
                        "budget": budget,
                        "method": method,
                        "top-1 at cost": reached(runs),
                        "gain": gain(_tops(runs), best.tops) if best else ABSENT,
                        "over the best other one": best.text if best else ABSENT,
                        "over its twin": f"{gain(_tops(runs), _tops(twin))} ({reached(twin)})" if twin else ABSENT,
                        "over dense": gain(_tops(runs), _tops(dense)) if dense else ABSENT,
                    }
                )
    return rows


def learns_importance(method):
    """Whether it is a method of ours that learns which tokens are important; nothing is known of one that is not on the shelf."""
    return method in METHODS and METHODS[method].importance


def _is_rival(method):
    return method != DENSE and not learns_importance(method)


def twin_of(method):
    """The name of the same method without importance, None if there is none: another way of training is no twin."""
    alike = METHODS[method]._replace(importance=False, twin=None)
    found = (name for name, other in METHODS.items() if other._replace(twin=None) == alike)
    return next(found, None)


def gain(tops, against):
    """ "+1.13 ± 0.70": points between the means of two lists of seeds."""
    difference = f"{statistics.mean(tops) - statistics.mean(against):+.2f}"
    if min(len(tops), len(against)) == 1:
        return difference
    return f"{difference} ± {(statistics.variance(tops) + statistics.variance(against)) ** 0.5:.2f}"


def _at(method, cells, cost):
    """The `Point` of a method, given as budget -> cells, at a cost; None: it was tuned at higher ones alone."""
    found = sorted(((mean(runs, "cost"), runs) for runs in cells.values()), key=lambda one: one[0])
    near = [(abs(own - cost), own, runs) for own, runs in found if abs(own - cost) <= NEAR]
    if near:
        _, own, runs = min(near, key=lambda one: one[0])
        return Point(_tops(runs), f"{method} {reached(runs)}")
    below, above = [one for one in found if one[0] < cost], [one for one in found if one[0] > cost]
    if not above and below:  # nothing dearer is known of it: what it has for less, it has
        return Point(_tops(below[-1][1]), f"{method} {reached(below[-1][1])}")
    if not below:
        return None
    (low, cheap), (high, dear) = below[-1], above[0]
    share = (cost - low) / (high - low)
    ends = [statistics.mean(_tops(runs)) for runs in (cheap, dear)]
    top = ends[0] + share * (ends[1] - ends[0])
    return Point(
        [top], f"{method} {top:.2f} at {cost:.3f}, between {ends[0]:.2f} at {low:.3f} and {ends[1]:.2f} at {high:.3f}"
    )


def _tops(runs):
    return [100 * run.accuracy for run in runs]


def reached(runs, top1=None):
    """ "92.07 ± 0.13 at 0.504, 192 px (3 seeds)": cells that differ by seed alone; top1: what stands first, if not that."""
    pixels = f", {runs[0].resolution} px" if runs[0].resolution else ""
    if runs[0].cascade:
        others = dict.fromkeys(counts_text(run.cascade) for run in runs if run.cascade)
        pixels = f", {looks_text(runs[0].cascade)}" + f" (of several, {' or '.join(others)})" * (len(others) > 1)
    return f"{top1 or percent(runs)} at {mean(runs, 'cost'):.3f}{pixels}{counted(runs)}"
