"""Two tables of README.md: methods tuned alike at a few budgets, and what models gain on the clock."""

from ..measure.dense import AHEAD, AHEAD_EAGER
from ..measure.dense import FROZEN as OLD
from .leaderboard import TOO_DEAR, columns_of, joined, name_of, named, top1, tuned_cells
from .leaderboard_looks import turned_from
from .leaderboard_results import DENSE
from .markdown import ABSENT
from .names import ALIKE, cost_spread, counts_text, model_name, place, short
from .rivals import counted, mean, percent


TUNED = (
    "Top-1 in per cent, tuned by the same recipe, from the same checkpoint, on as many images. A column is a budget, a share of the "
    "dense model's computation; each cell says what was spent. ± is the deviation over seeds; differences below a point "
    "between rows of one seed are noise. –: not run. Bold: the best of the tuned rows that met the budget to within {dear:.2f}; "
    "none is bold where another row has more seeds. {untrained}[More about the methods](recipes/README.md#all-methods), [all tables and commands](recipes/README.md#results)."
    "\n\n{words}"
)
CLOSED_FORM = "*Untrained*: the checkpoint as given, with what its gates learn in closed form from unlabelled images. "
LEGEND = {  # a method, or how its name ends -> what it is
    "merge": "tokens merge by likeness and learned importance",
    "adavit-plus": "and heads and sub-layers are skipped",
    "-sublayers": "sub-layers alone",
    "tome": "merging by likeness alone, as often in every image",
    "cascade": "a cheap look, and another one only where it leaves the model unsure",
    "cascade-resized": "such looks of the plain ViT, at two sizes of images",
    "cascade-together-resized": "both of these learn in each step",
    "cascade-every-resized": "three of these, the same for every budget, learn in each step",
    "-together": "both looks learn in each step, which takes longer",
    "-every": "three looks, the same for every budget, learn in each step",
    "-fixed": "merging as often in every image, or in each look",
    "-placed": "before the three layers where that harms least",
    "-unlearned": "without learned importance",
    "resized": "smaller images alone",
    "merge-resized": "their size is chosen too",
    "novelty": "tokens like others merge, by a rule",
    "evit": "those that [CLS] attends to least are fused",
    "topk": "those that [CLS] attends to least are dropped",
    "topk-merge": "those that [CLS] attends to least merge into others",
    "dynamicvit": "a predictor that is sampled in training says which stay",
    "cropr": "a linear score says which stay, taught by a head of its own",
    "diffrate": "merging and its rates are learned for each layer",
    "avit": "a token leaves when its halting scores add up to one",
    "ats": "tokens stay that are sampled by attention and values",
    "pitome": "those that are like many others merge, as often in every image",
    "contrast": "those nearest to the mean of their image are dropped",
    "random-merge": "tokens merge that are drawn at random",
}
ONE_MODEL = "{}, one model"
ONE_MODEL_MEANS = (
    "\n- *one model*: a cascade tuned for one of these budgets, where it is that of the row above, and turned to the others "
    "without training"
)
COUNT_ALIKE = ", looks alike"
ALIKE_MEANS = "\n- *looks alike*: those of this cascade count alike in the mean; elsewhere a later one counts more"
UNTRAINED = ("merge", "merge-resized", "cascade", "tome")  # methods whose rows without training are shown
CLOCK = (
    "In PyTorch: how many times as fast as the fastest dense model there is here; in brackets that gain as a share of what "
    "costs promise (that of the dense model, below 1 where it leaves out what is not read, over that of the timed images), and the cost of these. *Compiled*: the whole model was compiled, which needs as many tokens in every image, "
    "and that was faster. Cost: its mean, deviation and ends over all images. Models of other trainings were timed, too "
    "([all tables](recipes/README.md#results)). Before 92c88ed compiled dense models, and "
    "ours without gates, computed all tokens of the last layer; since then what the classifier reads: ratios of older rows may be "
    "too high by as much.{frozen}"
)
EAGER = " Older rows were timed before a dense model compiled with eager attention was among their rivals{most}."
FROZEN = (
    " A *frozen compile*, the fastest dense model of older rows, is slower at batch 1 than one compiled ahead of time "
    "([which of them](recipes/README.md#results))."
)


def tuned_rows(boards, order=()):
    """A row for each method that was tuned, a column for each data set and budget; the dense model and what is untrained first.

    Args:
        boards: `Leaderboard`s. order: names of methods, in which their rows come; others follow.
    """
    # (data set, budget) -> method -> cells, tuned and untrained; data set -> accuracy; (data set, budget, method) of cascades
    columns, as_given, dense, given, alike = {}, {}, {}, {}, set()
    for name, board in strongest(boards):
        own = columns_of(board)
        models = {ONE_MODEL.format(method): found for method, found in turned_from(board, own).items()}
        turned = {method: cells for method, (_, cells) in models.items()}
        for budget, column in own.items():
            columns[name, budget] = column | {
                method: cells[budget] for method, cells in turned.items() if budget in cells
            }
            untrained = {method: cells for (method, kind), cells in board.by_cell().items() if not kind}
            as_given[name, budget] = {method: cells[budget] for method, cells in untrained.items() if budget in cells}
            of = columns[name, budget] | {method: runs for method, (runs, _) in models.items()}
            alike |= {(name, budget, method) for method, runs in of.items() if _alike(runs)}
            alike |= {
                (name, budget, f"{method}, untrained")
                for method, cells in untrained.items()
                if _alike(cells.get(budget, ()))
            }
            given[name] = f"{100 * board.dense.accuracy:.2f}"
        dense[name] = next(iter(board.by_cell().get((DENSE, True), {}).values()), None)
    if not columns:
        return []
    shown = {name: percent(runs) + counted(runs) if runs else ABSENT for name, runs in dense.items()}
    rows = [{"method": "dense, as given"} | {_heading(*key): given[key[0]] for key in columns}]
    for method in (method for method in UNTRAINED if any(method in column for column in as_given.values())):
        row = f"{method}, untrained"
        cells = {_heading(*key): _cell(method, column, {}, (*key, row) in alike) for key, column in as_given.items()}
        rows.append({"method": row} | cells)
    rows += [{"method": "dense, tuned"} | {_heading(*key): shown[key[0]] for key in columns}]
    methods = list(dict.fromkeys(method for column in columns.values() for method in column))
    order = [name for method in order for name in (method, ONE_MODEL.format(method))]
    methods.sort(key=lambda method: order.index(method) if method in order else len(order))
    for method in methods:
        cells = {
            _heading(*key): _cell(method, column, column, (*key, method) in alike) for key, column in columns.items()
        }
        rows.append({"method": method} | cells)
    return rows


def tuned_words(rows):
    """What stands above `tuned_rows`: what the methods are that have a row."""
    names = [row["method"] for row in rows]
    shown = [key for key in LEGEND if key in names or (key[0] == "-" and any(key in name for name in names))]
    words = "\n".join(f"- *{key}*: {LEGEND[key]}" for key in shown)
    words += ONE_MODEL_MEANS * any(name.endswith(ONE_MODEL.format("")) for name in names)
    words += ALIKE_MEANS * any(COUNT_ALIKE in cell for row in rows for cell in row.values())
    untrained = CLOSED_FORM * any(name.endswith(", untrained") for name in names)
    return TUNED.format(words=words, dear=TOO_DEAR, untrained=untrained)


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


def _alike(runs):
    """Whether any of these cells is of a cascade whose looks count alike."""
    return any(run.cascade and counts_text(run.cascade) == ALIKE for run in runs)


def _cell(method, column, rivals, alike):
    if method not in column:
        return ABSENT
    runs = column[method]
    shown = top1(runs, rivals.values()) if rivals else percent(runs)
    return f"{shown} at {mean(runs, 'cost'):.3f}{COUNT_ALIKE * alike}{counted(runs)}"


def clock_words(evaluations, boards=()):
    """What stands above `clock_rows`, which also says where a dense model is an older one."""
    speeds = [speed for _, speeds in _timed(evaluations, boards) for speed in speeds]
    old = any(OLD in speed.dense_ms and AHEAD not in speed.dense_ms for speed in speeds)
    without = any(AHEAD in speed.dense_ms and AHEAD_EAGER not in speed.dense_ms for speed in speeds)
    gains = [
        speed.dense_ms[AHEAD] / speed.dense_ms[AHEAD_EAGER] - 1 for speed in speeds if AHEAD_EAGER in speed.dense_ms
    ]
    most = max(gains, default=0.0)
    shown = f"; where it was timed it is up to {most:.0%} faster than the other" if most > 0 else ""
    return CLOCK.format(frozen=FROZEN * old + EAGER.format(most=shown) * without)


def clock_rows(evaluations, boards=()):
    """A row for each model with gates, sizes or looks that was timed, the cheapest of a data set first.

    Args:
        evaluations: `Evaluation`s, shown of data that no board was timed on: a board compares methods that were tuned alike.
        boards: `Leaderboard`s, of which the strongest that were timed are shown, their tuned cells.
    """
    found = _timed(evaluations, boards)
    sizes = sorted({speed.batch_size for _, speeds in found for speed in speeds})
    rows = []
    for row, speeds in found:
        gains = {speed.batch_size: _gain(speed) for speed in speeds}
        last = {name: row.pop(name) for name in ("device", "commit")}
        rows.append(row | {f"batch {size}": gains.get(size, ABSENT) for size in sizes} | last)
    return rows


def _timed(evaluations, boards):
    """(row but for its times, `Speed`s) of all that was timed and is not dense, in the order of the rows."""
    timed, above = strongest_timed(boards), [board for _, board in strongest(boards)]
    compared = {board.dataset for _, board in timed}
    found = [
        (one.dataset, one, {"decides": model_name(one), "device": place(one), "commit": one.commit})
        for one in evaluations
        if one.throughput and not one.is_dense() and one.dataset not in compared
    ]
    for name, board in timed:
        of = " of those above" if board in above else ""
        for cell in _timed_cells(board):
            decides = f"{cell.method} at {cell.budget:g}, seed {cell.seed}{of}"
            found.append((name, cell, {"decides": decides, "device": cell.timed_on, "commit": cell.timed_commit}))
    found.sort(key=lambda item: (item[0], item[1].cost))
    return [
        (
            {"data": data, "decides": row.pop("decides"), "top-1": percent([one]), "cost": cost_spread([one])} | row,
            one.throughput,
        )
        for data, one, row in found
    ]


def _timed_cells(board):
    return [cell for cell in board.cells if cell.tuned and cell.throughput and cell.method != DENSE]


def strongest_timed(boards):
    """(name, board) of each data set and checkpoint: of several recipes the first by `rank` of which cells were timed. One that
    `tuned_rows` shows has the same name there."""
    found, shown = {}, strongest(boards)
    for name, board in named(boards):
        if _timed_cells(board):
            name = next((short_name for short_name, other in shown if other == board), name)
            found.setdefault((board.dataset, board.model), (name, board))
    return list(found.values())


def _gain(speed):
    best = speed.best()
    how = ", compiled" * (best > speed.speedup)
    return f"{best:.2f}×{how} ({best * speed.timed_cost / speed.dense_cost:.2f} at {speed.timed_cost:.2f})"
