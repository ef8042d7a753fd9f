"""The plot of a leaderboard: top-1 against cost and against measured time, both relative to the dense model's."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

from .leaderboard_looks import for_every_budget, one_model
from .leaderboard_results import DENSE
from .names import short
from .plots import COLORS, INK, MARKERS, MUTED, PAGE, TRACK, new_figure
from .rivals import mean


COLUMNS = 2  # of panels
# A panel shows so many points of top-1 below the best, or so many times the distance to the lower quartile: what lies further
# below would squeeze all others together.
LEAST_SHOWN, FRAME = 10.0, 2.0
# So many methods have a color each. Of more those have one that no other beats in some panel, and those that readers look for.
FEW, KNOWN = 10, ("cascade-together", "tome", "evit", "random-merge")
OTHERS = "others, beaten\nwherever they are shown"
STAR = {"marker": "*", "markersize": 11, "color": INK, "linestyle": "none"}


class Scale(NamedTuple):
    """What stands on the horizontal axis of a panel, of the dense model 1.

    Attributes:
        of: cells that differ by seed alone -> place; None where it was not measured of any.
        turned: whether it has a place for a cascade for every budget at each of them.
        of_smaller: board -> place of the next smaller dense model, or None.
    """

    label: str
    of: Callable
    of_smaller: Callable
    turned: bool = False


def plot(board, path):
    """Write the plot of a board; untrained and tuned methods apart, for they may lie far apart."""
    panels = [(tuned, scale) for tuned in (False, True) for scale in scales(board, tuned)]
    points = [points_of(board, *panel) for panel in panels]
    named = in_color(board, points)
    rows = -(-len(panels) // COLUMNS)
    figure = new_figure(1.8 + 4.2 * min(len(panels), COLUMNS), 0.2 + 4 * rows, layout="constrained")
    grid = figure.subplots(rows, min(len(panels), COLUMNS), squeeze=False)
    axes = [axis for line in grid for axis in line]
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel, found in zip(axes, panels, points, strict=False):
        _draw(axis, board, *panel, found, named)
    for line in grid:
        line[0].set_ylabel("top-1, %")
    drawn = axes[: len(panels)]
    handles = {label: one for axis in drawn for one, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    others = handles.pop(OTHERS, None)
    handles |= {OTHERS: others} if others else {}  # last
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=120, facecolor=PAGE)


def points_of(board, tuned, scale):
    """Method -> [(place, top-1 in per cent), ...] by rising place, of one panel; but for the dense model's."""
    found, turned = {}, one_model(board) if tuned and scale.turned else {}
    for (method, kind), cells in board.by_cell().items():
        if kind != tuned or method == DENSE:
            continue
        everywhere = turned.get(method) if for_every_budget(method) else None
        points = [(scale.of(runs), 100 * mean(runs, "accuracy")) for runs in (everywhere or cells).values()]
        found[method] = sorted(point for point in points if point[0] is not None)
    return {method: points for method, points in found.items() if points}


def in_color(board, panels):
    """The methods that have a color and a name, in the order of the board.

    Args:
        panels: what `points_of` gives of each.
    """
    methods = [method for method in dict.fromkeys(cell.method for cell in board.cells) if method != DENSE]
    if len(methods) <= FEW:
        return methods
    leading = {*KNOWN, *(method for points in panels for method in _leading(points))}
    return [method for method in methods if method in leading]


def _leading(points):
    """Methods with a point in sight that has no other at most as far to the right and at least as high."""
    every = [point for found in points.values() for point in found]
    below = below_frame([top for _, top in every], [])

    def beaten(point):
        hidden = below is not None and point[1] < below.least
        return hidden or any(at <= point[0] and top >= point[1] and (at, top) != point for at, top in every)

    return [method for method, found in points.items() if not all(map(beaten, found))]


def scales(board, tuned):
    """`Scale`s of the cells that are tuned, or are not: cost, and time with the fewest and the most images of a batch."""
    cells = [cell for cell in board.cells if cell.tuned == tuned]
    if not cells:
        return []
    sizes = sorted({speed.batch_size for cell in cells for speed in cell.throughput})
    return [_costs(), *map(_times, dict.fromkeys([*sizes[:1], *sizes[-1:]]))]


def _costs():
    return Scale(
        "mean cost (MACs / MACs of the dense model)",
        lambda runs: mean(runs, "cost"),
        lambda board: board.smaller.gmacs / board.dense.gmacs,
        turned=True,
    )


def _times(batch_size):
    """Of each seed as its own run has it: milliseconds of other runs or machines say nothing of it."""

    def of(runs):
        found = [speed for cell in runs for speed in cell.throughput if speed.batch_size == batch_size]
        return statistics.mean(1 / speed.best() for speed in found) if found else None

    return Scale(
        f"measured time / the fastest dense model's, batch {batch_size}",
        of,
        lambda board: smaller_time(board, batch_size),
    )


def smaller_time(board, batch_size):
    """Time of the next smaller dense model over that of the dense model, each by its fastest way; None: not measured."""
    ours = [_dense_ms(speed) for speed in board.smaller.throughput if speed.batch_size == batch_size]
    speeds = (speed for cell in board.cells for speed in cell.throughput)
    dense = [_dense_ms(speed) for speed in speeds if speed.batch_size == batch_size]
    return ours[0] / min(dense) if ours and dense else None


def _dense_ms(speed):
    return speed.dense_ms[speed.fastest]


class Below(NamedTuple):
    """The least top-1 that is shown, and how many points are not."""

    least: float
    count: int


def below_frame(tops, stars):
    """`Below` of the top-1 of a panel's points; None where all are shown, as stars always are."""
    if not tops:
        return None
    best = max(tops)
    quartile = sorted(tops)[len(tops) // 4]
    least = min([best - LEAST_SHOWN, best - FRAME * (best - quartile), *(star - 1 for star in stars)])
    count = sum(top < least for top in tops)
    return Below(least, count) if count else None


def marker_of(at):
    """The marker of a method by its place: another one for each that has the same color."""
    return MARKERS[(at % 10 + 3 * (at // 10)) % len(MARKERS)]


def _draw(axis, board, tuned, scale, found, named):
    """One panel; `found`: what `points_of` gives of it, `named`: the methods in color, above the others."""
    grouped, tops = board.by_cell(), [top for points in found.values() for _, top in points]
    for method, points in found.items():
        if method in named:
            at = named.index(method)
            style = {"color": COLORS[at % 10], "marker": marker_of(at), "markersize": 5, "linewidth": 1.4}
            axis.plot(*zip(*points, strict=True), label=method, **style)
        else:
            style = {"color": MUTED, "marker": ".", "markersize": 5, "linewidth": 0.6, "zorder": 1.5, "alpha": 0.7}
            axis.plot(*zip(*points, strict=True), label=OTHERS, **style)
    taught = grouped.get((DENSE, True)) if tuned else None
    if taught:  # what was given has learned other things, or less
        runs = next(iter(taught.values()))  # of the same model, whatever budgets it was given
        axis.plot(1.0, 100 * mean(runs, "accuracy"), label="dense, tuned", markerfacecolor=INK, **STAR)
    else:
        axis.plot(1.0, 100 * board.dense.accuracy, label="dense, as given", markerfacecolor=INK, **STAR)
    if board.smaller and (at := scale.of_smaller(board)) is not None:
        label = f"dense, {short(board.smaller.model)}"
        axis.plot(at, 100 * board.smaller.accuracy, label=label, markerfacecolor=PAGE, **STAR)
    title = "tuned" if tuned else "untrained"
    stars = [line.get_ydata()[0] for line in axis.lines if line.get_label().startswith("dense, ")]
    if below := below_frame(tops, stars):
        axis.set_ylim(bottom=below.least)
        title += f" ({below.count} below {below.least:.0f} % not shown)"
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.set_xlabel(scale.label)
    axis.grid(color=TRACK, linewidth=0.8)
    axis.tick_params(labelsize=8.5, colors=MUTED)
    axis.spines[["top", "right"]].set_visible(False)
