"""The table of models with a dial: one model at each of its budgets, beside models that were trained for that one alone."""

from .leaderboard import joined
from .names import model_name, reported_on, short
from .rivals import counted, mean, percent
from .tables import MEASURED, of
from .tuning import DECIDES, recipe


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
    "their steps at that one: as many steps from the same start. ± is the deviation over seeds."
)


def dial_items(trainings, evaluations, boards):
    """The items of `DIALS`: trainings in several budgets, evaluated at one of them, where tuned cells of the method are known.

    Args:
        trainings: `Training` objects; the folder that one wrote to is what an evaluation calls its model.
        evaluations: `Evaluation` objects. boards: `Leaderboard` objects.
    """
    taught = {one.settings["training"]["output_dir"]: one for one in trainings if _in_turn(one)}
    found = []
    for one in sorted(evaluations, key=lambda one: (one.model, -(one.budget or 0))):
        training = taught.get(one.model)
        if training is None or not one.budgets or one.budget not in one.budgets:
            continue
        for board in joined(boards):
            cells = [cell for cell in board.cells if _alike(one, training, board, cell)]
            found += [(one, cells)] if cells else []
    return found


def _in_turn(training):
    return len(set(training.settings["training"].get("tuning_budgets") or [])) > 1


def _alike(one, training, board, cell):
    taught, own = recipe(board), training.settings
    same = all(getattr(board, name) == getattr(one, name) for name in ("dataset", "split_files", "images", "crop_pct"))
    same = same and board.model == own["model"]["model_name_or_path"]
    known = {name: own.get(part, {}).get(name) for part, names in DECIDES.items() for name in names}
    same = same and all(known[name] == value for name, value in taught.items() if value is not None)
    looks = (cell.resolution, cell.cascade) == (one.resolution, one.cascade)
    method = one.preset if one.preset != "merge" or any(one.learned.values()) else "merge-unlearned"
    return same and looks and cell.tuned and (cell.method, cell.budget) == (method, one.budget)
