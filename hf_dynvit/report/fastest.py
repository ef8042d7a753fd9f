"""The table that a practitioner asks for: which method is fastest at how little accuracy lost, at each batch size."""

import statistics

from ..measure.dense import KERNELS, PROGRAMS, TUNED
from .front import strongest_timed
from .leaderboard_results import DENSE
from .markdown import ABSENT
from .rivals import mean, percent


LOSSES = (0.0, 0.5, 1.0, 2.0, 3.0)  # points of top-1 below the dense model that was tuned alike
FASTEST = (
    "Which method is the fastest in PyTorch that loses at most so many points of top-1 to the dense model, tuned by the same recipe: "
    "how many times as fast as the fastest dense model, which may be compiled, too, and top-1. –: none of them that is near enough "
    "is faster. Top-1 is the mean of all seeds, times are of those that were timed. They are chosen on the images that are reported, "
    "and of one seed differences below a point are noise; looks that learn together (`-together`, `-every`) take more to "
    "train. Timed on one machine against all of today's dense models: {}."
)


def fastest_words(boards):
    """What stands above `fastest_rows`, with all that competed."""
    found = {}
    for _, board in strongest_timed(boards):
        for method, budget in _timed(board):
            found.setdefault(method, set()).add(budget)
    competed = (
        f"`{method}` at {', '.join(f'{one:g}' for one in sorted(budgets, reverse=True))}"
        for method, budgets in found.items()
    )
    return FASTEST.format("; ".join(competed))


def fastest_rows(boards):
    """A row for each loss of the strongest timed board of a data set, a column for each batch size.

    Args:
        boards: `Leaderboard`s; one whose dense model was not tuned has no rows.
    """
    rows = []
    for name, board in strongest_timed(boards):
        grouped, timed = board.by_cell(), _timed(board)
        taught = grouped.get((DENSE, True))
        if not taught or not timed:
            continue
        dense = mean(next(iter(taught.values())), "accuracy")
        sizes = sorted({size for speeds in timed.values() for size in speeds})
        for loss in LOSSES:
            kept = {
                key: speeds
                for key, speeds in timed.items()
                if 100 * (dense - mean(grouped[key[0], True][key[1]], "accuracy")) <= loss + 1e-9
            }
            cells = {f"batch {size}": _fastest(kept, grouped, size) for size in sizes}
            rows.append({"data": name, "at most lost": f"{loss:g}"} | cells | {"device": _machine(board)})
    return rows


def _of_today(cell):
    """Whether a tuned cell with something to decide was timed against all of today's dense models."""
    return bool(cell.tuned and cell.method != DENSE and cell.throughput) and all(map(_against_today, cell.throughput))


def _against_today(speed):
    """Whether all compiled dense models were there, and computed of the last layer what is read alone, as ours without gates."""
    there = set(PROGRAMS) <= set(speed.dense_ms) or TUNED in speed.dense_ms
    return there and (speed.fastest in KERNELS or speed.dense_cost < 1)


def _machine(board):
    """Where the most of them were timed; None without any."""
    places = [cell.timed_on for cell in board.cells if _of_today(cell)]
    return statistics.mode(places) if places else None


def _timed(board):
    """(method, budget) -> batch size -> how many times as fast, the mean over seeds: on one machine."""
    found, machine = {}, _machine(board)
    for cell in board.cells:
        if _of_today(cell) and cell.timed_on == machine:
            speeds = found.setdefault((cell.method, cell.budget), {})
            for speed in cell.throughput:
                speeds.setdefault(speed.batch_size, []).append(speed.best())
    return {key: {size: statistics.mean(gains) for size, gains in speeds.items()} for key, speeds in found.items()}


def _fastest(timed, grouped, size):
    """ "merge-fixed at 0.5: 1.36×, 91.89 ± 0.08"; a dash where none is faster than the dense model."""
    gain, key = max(((speeds[size], key) for key, speeds in timed.items() if size in speeds), default=(0.0, None))
    if gain <= 1:
        return ABSENT
    method, budget = key
    return f"{method} at {budget:g}: {gain:.2f}×, {percent(grouped[method, True][budget])}"
