"""The table of what learning is worth on a board: each method that learns importance, against the best of those that do not."""

import statistics

from ..training.methods import DENSE, METHODS
from .markdown import ABSENT
from .names import looks_text
from .rivals import counted, mean, percent


NEAR = 0.02  # relative cost: a rival that costs this much more is still as cheap
GAINS = (
    "*What learning is worth*: each tuned method that learns the importance of tokens, against the best of all tuned ones that do not "
    "(rules, the literature's, smaller images, its own twin without importance) and cost at most {near} more. The best is chosen on the "
    "images that are reported, in its favour; what either cost stands beside it. ± is the deviation over seeds; that of a gain is the root of both variances, –: one of "
    "the two has one seed. *Its twin*: the same without importance, tuned alike. *Dense*: the gain over the tuned dense model."
)


def gain_rows(board):
    """A row for each tuned method that learns importance, at each budget; none where nothing stands against it."""
    tuned = {
        (method, budget): runs
        for (method, kind), cells in board.by_cell().items()
        if kind
        for budget, runs in cells.items()
    }
    dense = next((runs for (method, _), runs in tuned.items() if method == DENSE), None)
    rows = []
    for (method, budget), runs in sorted(tuned.items(), key=lambda item: -item[0][1]):
        rivals = [
            (other, found)
            for (other, _), found in tuned.items()
            if other != DENSE and not learns(other) and mean(found, "cost") <= mean(runs, "cost") + NEAR
        ]
        if not learns(method) or not rivals:
            continue
        best, against = max(rivals, key=lambda rival: mean(rival[1], "accuracy"))
        rows.append(
            {
                "budget": budget,
                "learns": method,
                "top-1 at cost": _reached(runs),
                "the best that does not": f"{best} {_reached(against)}",
                "gain": gain(runs, against),
                "its twin": _twin(method, runs, tuned.get((f"{METHODS[method].twin or method}-unlearned", budget))),
                "dense": gain(runs, dense) if dense else ABSENT,
            }
        )
    return rows


def learns(method):
    """Whether a method of ours learns which tokens are important; of one that is not on the shelf nothing is known."""
    return method in METHODS and METHODS[method].importance


def gain(runs, against):
    """ "+1.13 ± 0.70": points of top-1 between the means of cells that differ by seed alone."""
    points = [[100 * run.accuracy for run in one] for one in (runs, against)]
    difference = f"{statistics.mean(points[0]) - statistics.mean(points[1]):+.2f}"
    if min(map(len, points)) == 1:
        return difference
    return f"{difference} ± {sum(map(statistics.variance, points)) ** 0.5:.2f}"


def _twin(method, runs, twin):
    return ABSENT if twin is None else f"{gain(runs, twin)} over {_reached(twin)}"


def _reached(runs):
    pixels = f", {runs[0].resolution} px" if runs[0].resolution else ""
    pixels = f", {looks_text(runs[0].cascade)}" if runs[0].cascade else pixels
    return f"{percent(runs)} at {mean(runs, 'cost'):.3f}{pixels}{counted(runs)}"
