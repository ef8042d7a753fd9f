"""Every method beside the others at the same budgets: parts of a board as one, and its tables."""

import re
from dataclasses import replace
from pathlib import Path

from ..measure.files import write_text
from .leaderboard_gains import GAINS, gain_rows, reached
from .leaderboard_looks import LOOKS, look_rows
from .leaderboard_numbers import NUMBERS, number_rows
from .leaderboard_plot import plot, smaller_time
from .leaderboard_results import DENSE
from .markdown import ABSENT, Commands, table
from .names import processor, reported_on, short
from .plots import drawn
from .rivals import mean, percent
from .tables import compiled
from .tuning import differs, length, recipe


AND = " and "  # between the devices of a board's parts
TOO_DEAR = 0.02  # cost above the budget: the best of those that met it
TIMED = "throughput timed_commit timed_command timed_on".split()
FEWEST = 2  # methods tuned at a budget: one alone compares nothing
SAME = "model dataset split split_files images crop_pct".split()
MEANS = (
    "Top-1 in per cent, ± its deviation over seeds, at the mean cost that was met; the checkpoint has {dense:.2f}. *Untrained*: "
    "thresholds and importance were found on {count} images without labels, amounts on the first batch of them; the backbone is "
    "as it was. *Tuned*: "
    "by the same recipe, from the same checkpoint, on as many images (`cascade-together`, `cascade-every` and what is named after them: on each of them once for every look). Smaller images (*px*): resized inside the model; of a cascade each look at its cost, and in brackets what each counts in the mean, if not alike. Bold: the best of those that met the "
    "budget, if none has more seeds. On {place}, "
    "{images} images of {dataset}, {model}, commit {commit}, {command}:"
)
SMALLER = (
    "The next smaller dense model, {name}, has {accuracy:.2f} at {share:.3f} of the dense model's computation{times}."
)


def joined(boards):
    """Boards of the same checkpoint and images as one, their cells in the order they come; what several hold counts once, as the
    first has it, with the times of the first that has any if that is the same otherwise.

    Boards that were tuned by other recipes (tuning.py) stay apart, in the order of `rank`; one without tuned cells goes with the
    first of its checkpoint and images. Where devices differ, all are named.
    """
    found, tuned = {}, [board for board in boards if tuned_cells(board)]
    for board in sorted(tuned, key=tuned_cells, reverse=True):
        key = _same_images(board), tuple(recipe(board).items())
        found[key] = _with(found.get(key), board)
    for board in boards:
        if not tuned_cells(board):
            alike = [key for key in found if key[0] == _same_images(board)]
            key = max(alike, key=lambda key: rank(found[key]), default=(_same_images(board), ()))
            found[key] = _with(found.get(key), board)
    return sorted(found.values(), key=rank, reverse=True)


def _same_images(board):
    return tuple(str(getattr(board, name)) for name in SAME)


def _with(before, board):
    """A board, or one before with the cells of another one; None: there is none before."""
    cells = {_which(cell): cell for cell in before.cells} if before else {}
    for one in board.cells:
        one = replace(one, commit=one.commit or board.commit, command=one.command or board.command)
        known = cells.setdefault(_which(one), one)
        if one.throughput and not known.throughput and _same(known, one):
            known = replace(known, **{name: getattr(one, name) for name in TIMED})
        if one.looks and not known.looks and _same(known, one):
            of = {
                "looked_commit": one.looked_commit or one.commit,
                "looked_command": one.looked_command or one.command,
            }
            known = replace(known, looks=one.looks, **of)
        cells[_which(one)] = known
    both = replace(before or board, cells=list(cells.values()), smaller=board.smaller or (before and before.smaller))
    devices = dict.fromkeys(AND.join(processor(part) for part in (before, board) if part).split(AND))
    return replace(both, device=AND.join(devices), instructions=None) if len(devices) > 1 else both


def rank(board):
    """What is shown first: a board that compares methods; that whose dense model is the most accurate once it is tuned, for
    against a weaker one any method looks better; that of the most tuned cells."""
    dense = [cell for cell in board.cells if cell.tuned and cell.method == DENSE]
    return bool(columns_of(board)), mean(dense, "accuracy") if dense else 0.0, tuned_cells(board)


def columns_of(board):
    """Budget -> tuned method -> cells that differ by seed, the dearest first, where there is something to compare."""
    found = {}
    for (method, kind), cells in board.by_cell().items():
        for budget, runs in cells.items() if kind and method != DENSE else ():
            found.setdefault(budget, {})[method] = runs
    return {budget: found[budget] for budget in sorted(found, reverse=True) if len(found[budget]) >= FEWEST}


def tuned_cells(board):
    return sum(cell.tuned for cell in board.cells)


def _which(cell):
    return cell.method, cell.budget, cell.tuned, cell.seed


def _same(one, other):
    """Whether two cells are of the same model, as far as can be told."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("accuracy", "cost", "gates", "resolution", "cascade")
    )


def named(boards):
    """(name, board) of joined boards: the data set and the length of the tuning, and the model, or what is other in the recipe,
    where others have these too."""
    found = joined(boards)
    names = [name_of(board) for board in found]
    made = []
    for name, board in zip(names, found, strict=True):
        alike = [other for one, other in zip(names, found, strict=True) if one == name and other is not board]
        model = [short(board.model)] if any(other.model != board.model for other in alike) else []
        recipes = differs(board, [other for other in alike if other.model == board.model])
        made.append((", ".join([name, *model, *recipes]), board))
    return made


def name_of(board):
    """The data set and the length of the tuning."""
    return ", ".join(filter(None, (board.dataset, length(board))))


def plot_name(name):
    """The file of the plot of a board, by the board's name."""
    return re.sub(r"\W+", "_", name) + ".png"


def sections(boards, plots=None):
    """Markdown parts: a table for each checkpoint and images, and one of the speeds that were measured.

    Args:
        plots: the folder of plots by `plot_name`, from where the text will stand; None: they are not shown.
    """
    parts = []
    for name, board in named(boards):
        commands = Commands()
        introduction = MEANS.format(
            dense=100 * board.dense.accuracy,
            count=board.settings["board"]["images"],
            place=processor(board),
            images=reported_on(board),
            dataset=board.dataset,
            model=short(board.model),
            commit=" and ".join(dict.fromkeys(one for cell in board.cells for one in cell.commits())),
            command=commands.refer([one for cell in board.cells for one in cell.commands()]),
        )
        parts += [f"### All methods, {name}", introduction]
        parts += [f"![Top-1 of all methods against their cost, {name}]({plots}/{plot_name(name)})"] if plots else []
        parts += [table(accuracy_rows(board))]
        gains = gain_rows(board)
        parts += [GAINS, table(gains)] if gains else []
        speeds = speed_rows(board)
        parts += [table(speeds)] if speeds else []
        cascades = look_rows(board)
        parts += [LOOKS, table(cascades)] if cascades else []
        parts += [smaller_dense(board)] if board.smaller else []
        parts += [NUMBERS, table(number_rows(board)), commands.listing()]
    return parts


def smaller_dense(board):
    """What the smaller dense model reaches, in a sentence."""
    sizes = sorted({speed.batch_size for speed in board.smaller.throughput})
    times = {size: time for size in sizes if (time := smaller_time(board, size)) is not None}
    return SMALLER.format(
        name=short(board.smaller.model),
        accuracy=100 * board.smaller.accuracy,
        share=board.smaller.gmacs / board.dense.gmacs,
        times="".join(f", {time:.2f} of its time at batch {size}" for size, time in times.items()),
    )


def accuracy_rows(board):
    """A row for each method, untrained and tuned, a column for each budget; the best at that budget in bold."""
    budgets = sorted({cell.budget for cell in board.cells}, reverse=True)
    grouped, rows = board.by_cell(), []
    columns = {}
    for (_, tuned), cells in grouped.items():
        for budget, runs in cells.items():
            columns.setdefault((tuned, budget), []).append(runs)
    for (method, tuned), cells in grouped.items():
        row = {"method": method, "": "tuned" if tuned else "untrained"}
        for budget in budgets:
            row[str(budget)] = (
                reached(cells[budget], top1(cells[budget], columns[tuned, budget])) if budget in cells else ABSENT
            )
        rows.append(row)
    return rows


def top1(runs, column):
    """Top-1 of cells that differ by seed alone, in bold if of a column, the cells of one budget, they are the best of those that
    met it: of the most seeds, and none of fewer is better."""
    most = max(len(others) for others in column)
    met = [others for others in column if mean(others, "cost") <= others[0].budget + TOO_DEAR]
    best = max((mean(others, "accuracy") for others in met), default=None)
    return (
        f"**{percent(runs)}**"
        if runs in met and len(runs) == most and mean(runs, "accuracy") == best
        else percent(runs)
    )


def speed_rows(board):
    """A row for each cell that was timed: its speed-up over the fastest dense model, by batch size."""
    rows = []
    for cell in board.cells:
        if cell.throughput:
            kind = "tuned" if cell.tuned else "untrained"
            row = {"method": cell.method, "": kind, "budget": cell.budget, "seed": cell.seed}
            row["top-1"] = f"{100 * cell.accuracy:.2f}"
            for speed in cell.throughput:
                shown = f"{speed.speedup:.2f}× ({speed.realised:.2f} of the promise){compiled(speed)}"
                row[f"batch {speed.batch_size}"] = shown
            rows.append(row | {"on": cell.timed_on})
    return rows


def publish(boards, folder):
    """Write leaderboard.md and leaderboard.png of the first of joined boards into a folder."""
    (board, *_) = joined(boards)
    write_text(Path(folder) / "leaderboard.md", "\n\n".join(sections([board])) + "\n")
    drawn(plot, board, Path(folder) / "leaderboard.png")
