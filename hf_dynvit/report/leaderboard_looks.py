"""The table of a board's cascades: each at every budget that it reaches, beside as many looks at random."""

from ..measure.looks import BUDGETS
from ..training.methods import METHODS
from .markdown import ABSENT
from .rivals import counted, mean, percent


LOOKS = (
    "One cascade at every budget: the model is the same in all columns, only it changes from which confidence an image is done. In each "
    "cell top-1 at its cost, and in brackets what it is worth that an image decides: the gain over as many looks for images at "
    "random, at what these cost. A row is a method as it was brought to one budget (*for*), trained with so many seeds or not:"
)


def look_rows(board):
    """A row for each method and budget whose cascades were looked at, a column for each budget; seeds together."""
    rows = []
    for (method, tuned), cells in board.by_cell().items():
        for budget, runs in cells.items():
            found = [{one.budget: one for one in cell.looks.at} for cell in runs if cell.looks]
            if found:
                row = {"method": method, "": "tuned" if tuned else "untrained", "for": budget}
                rows.append(row | {"reached": found})
    reached = sorted({budget for row in rows for one in row["reached"] for budget in one}, reverse=True)
    return [_row(row, reached) for row in rows]


def one_model(board, budgets=BUDGETS):
    """Method -> budget -> an `AtBudget` for each seed of cascades that were tuned for one budget and turned to the others."""
    return {method: reached for method, (_, reached) in turned_from(board, budgets).items()}


def turned_from(board, budgets=BUDGETS):
    """Method -> the cells of the models that are turned, one for each seed, and what `one_model` has of them.

    Of a method's models those that reach the most of the budgets, with the most seeds, of equal ones the dearest; none that
    reach one budget alone.
    """
    found = {}
    for (method, tuned), cells in board.by_cell().items():
        turned = [(runs, _turned(runs, budgets)) for runs in cells.values() if tuned]
        best = max(turned, key=lambda one: sum(map(len, one[1].values())), default=((), {}))
        if len(best[1]) > 1:
            found[method] = best
    return found


def for_every_budget(method):
    """Whether a method's looks are the same for every budget; nothing is known of one that is not on the shelf."""
    return method in METHODS and METHODS[method].looks > 2


def _turned(runs, budgets):
    """Budget -> the looks of all seeds, where each of them reaches it."""
    reached = [{one.budget: one for one in cell.looks.at} if cell.looks else {} for cell in runs]
    return {budget: [one[budget] for one in reached] for budget in budgets if all(budget in one for one in reached)}


def _row(row, budgets):
    found = row.pop("reached")
    cells = {budget: [one[budget] for one in found if budget in one] for budget in budgets}
    return row | {str(budget): _cell(runs, len(found)) if runs else ABSENT for budget, runs in cells.items()}


def _cell(runs, seeds):
    few = f" ({len(runs)} of {seeds} seeds)" if len(runs) < seeds else ""  # the others do not reach it
    gain = 100 * (mean(runs, "accuracy") - mean(runs, "at_random"))
    return f"{percent(runs)} at {mean(runs, 'cost'):.3f} ({gain:+.2f} at {mean(runs, 'cost_at_random'):.3f}){few or counted(runs)}"
