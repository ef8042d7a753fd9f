"""Two tables of README.md: methods tuned alike at a few budgets, and what models gain on the clock."""

from ..measure.dense import AHEAD
from ..measure.dense import FROZEN as OLD
from .leaderboard import columns_of, joined, name_of, top1, tuned_cells
from .leaderboard_results import DENSE
from .markdown import ABSENT
from .names import cost_spread, model_name, place, short
from .rivals import counted, mean, percent


TUNED = (
    "Top-1 in per cent, tuned by the same recipe, from the same checkpoint, on as many images; a column is a budget, a share of the "
    "dense model's computation, and each cell says what was spent. ± is the deviation over seeds; differences below a point "
    "between rows of one seed are noise. –: not run. *merge*: tokens merge by likeness and learned importance (*-fixed*: as many in every image, or in each look); *adavit-plus*: and heads "
    "and sub-layers are skipped (*merge-sublayers*: sub-layers alone); *tome*: by likeness alone, as many in every image; *cascade*: a cheap look, and another one only "
    "where it leaves the model unsure (*-together*: both looks learn in each step, which takes longer); *-unlearned*: without learned importance; *resized*: smaller images alone, "
    "*-resized*: their size is chosen too. Bold: the best of those that met the budget, if none has more seeds. "
    "[More about the methods](recipes/README.md#all-methods), [all tables and commands](recipes/README.md#results)."
)
CLOCK = (
    "In PyTorch: how many times as fast as the fastest dense model there is here; in brackets the share of the gain that the cost "
    "of the timed images promises, and that cost. *Compiled*: as a whole, which models can be that keep as many tokens of every image, where "
    "that is faster. Cost: its mean, deviation and ends over all images.{frozen}"
)
FROZEN = (
    " A *frozen compile*, the fastest dense model of older rows, is slower at batch 1 than one compiled ahead of time "
    "([which of them](recipes/README.md#results))."
)


def tuned_rows(boards, order=()):
    """A row for each method that was tuned, a column for each data set and budget; the dense model first.

    Args:
        boards: `Leaderboard`s. order: names of methods, in which their rows come; others follow.
    """
    columns, dense, given = {}, {}, {}  # (data set, budget) -> method -> cells; data set -> accuracy
    for name, board in strongest(boards):
        for budget, column in columns_of(board).items():
            columns[name, budget] = column
            given[name] = f"{100 * board.dense.accuracy:.2f}"
        dense[name] = next(iter(board.by_cell().get((DENSE, True), {}).values()), None)
    if not columns:
        return []
    shown = {name: percent(runs) + counted(runs) if runs else ABSENT for name, runs in dense.items()}
    rows = [{"method": "dense, as given"} | {_heading(*key): given[key[0]] for key in columns}]
    rows += [{"method": "dense, tuned"} | {_heading(*key): shown[key[0]] for key in columns}]
    methods = list(dict.fromkeys(method for column in columns.values() for method in column))
    methods.sort(key=lambda method: order.index(method) if method in order else len(order))
    for method in methods:
        cells = {_heading(*key): _cell(method, column) for key, column in columns.items()}
        rows.append({"method": method} | cells)
    return rows


def strongest(boards):
    """(name, board) of each data set and checkpoint, those with the most tuned cells first; of several recipes the first by
    `rank`."""
    found = {}
    for board in joined(boards):
        found.setdefault((board.dataset, board.model), board)
    best = list(found.values())
    best.sort(key=tuned_cells, reverse=True)
    names = [name_of(board) for board in best]
    return [
        (f"{name}, {short(board.model)}" if names.count(name) > 1 else name, board)
        for name, board in zip(names, best, strict=True)
    ]


def _heading(name, budget):
    return f"{name}, {budget:g}"


def _cell(method, column):
    if method not in column:
        return ABSENT
    runs = column[method]
    return f"{top1(runs, column.values())} at {mean(runs, 'cost'):.3f}{counted(runs)}"


def clock_words(evaluations):
    """What stands above `clock_rows`, which also says where a dense model is an older one."""
    speeds = [speed for one in evaluations if not one.is_dense() for speed in one.throughput]
    old = any(OLD in speed.dense_ms and AHEAD not in speed.dense_ms for speed in speeds)
    return CLOCK.format(frozen=FROZEN * old)


def clock_rows(evaluations):
    """A row for each model with gates, sizes or looks that was timed, the cheapest of a data set first."""
    timed = [one for one in evaluations if one.throughput and not one.is_dense()]
    sizes = sorted({speed.batch_size for one in timed for speed in one.throughput})
    rows = []
    for one in sorted(timed, key=lambda one: (one.dataset, one.cost)):
        speeds = {speed.batch_size: _gain(speed) for speed in one.throughput}
        rows.append(
            {"data": one.dataset, "decides": model_name(one), "top-1": percent([one]), "cost": cost_spread([one])}
            | {f"batch {size}": speeds.get(size, ABSENT) for size in sizes}
            | {"device": place(one), "commit": one.commit}
        )
    return rows


def _gain(speed):
    best = speed.best()
    how = ", compiled" * (best > speed.speedup)
    return f"{best:.2f}×{how} ({best * speed.timed_cost:.2f} at {speed.timed_cost:.2f})"
