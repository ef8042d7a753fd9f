"""The table of models with a dial: one model at each of its budgets, beside models that were trained for that one alone."""

from .names import model_name, reported_on, short
from .rivals import counted, mean, percent
from .tables import MEASURED, of


DIALS = {  # of an evaluation, and the cells of a leaderboard beside it
    "model": lambda results, cells: short(results.model),
    "data": lambda results, cells: results.dataset,
    "decides": lambda results, cells: model_name(results),
    "images": lambda results, cells: reported_on(results),
    "budget": lambda results, cells: results.budget,
    "top-1 at cost": lambda results, cells: f"{100 * results.accuracy:.2f} at {results.cost:.3f}",
    "of a model for that budget alone": lambda results, cells: (
        f"{percent(cells)} at {mean(cells, 'cost'):.3f}{counted(cells)}"
    ),
    "difference": lambda results, cells: f"{100 * (results.accuracy - mean(cells, 'accuracy')):+.2f}",
    **of(MEASURED),
}
MEANING = (
    "One checkpoint, whose training took its budgets in turn, at each of them, and the models of the leaderboard that took all of "
    "their steps at that one: as many steps of as many images, from the same start. ± is the deviation over seeds."
)


def dial_items(evaluations, boards):
    """The items of `DIALS`: models with a table of budgets at one of them, where tuned cells of the same method are known.

    Args:
        evaluations: `Evaluation` objects. boards: `Leaderboard` objects.
    """
    found = []
    for one in sorted(evaluations, key=lambda one: (one.model, -(one.budget or 0))):
        if not one.budgets or one.budget not in one.budgets:
            continue
        cells = [cell for board in boards for cell in board.cells if _alike(one, board, cell)]
        found += [(one, cells)] if cells else []
    return found


def _alike(one, board, cell):
    same = (board.dataset, board.split_files, board.images) == (one.dataset, one.split_files, one.images)
    looks = (cell.resolution, cell.cascade) == (one.resolution, one.cascade)
    return same and looks and cell.tuned and (cell.method, cell.budget) == (one.preset, one.budget)
