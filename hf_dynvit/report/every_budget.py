"""The table of cascades for every budget: one model turned to each of them, beside the best that was trained for that alone."""

from .leaderboard import TOO_DEAR, columns_of, named
from .leaderboard_gains import gain, reached
from .leaderboard_looks import for_every_budget, one_model
from .rivals import counted, mean, percent


EVERY = (
    "One cascade that was trained once, its looks the same for every budget, and turned to each without training; beside it, of all "
    f"methods that took their steps at that budget alone and met it to within {TOO_DEAR:.2f}, the most accurate one, chosen on the images "
    "that are reported, in its favour. As many steps from the same start; with looks that learn together a step computes more. ± is "
    "the deviation over seeds (of a difference the root of the sum of both variances), where both have several."
)


def every_rows(boards):
    """A row for each such cascade of each board and each budget for which others were trained."""
    return [
        {
            "data": name,
            "method": method,
            "budget": budget,
            "top-1 at cost": f"{percent(runs)} at {mean(runs, 'cost'):.3f}{counted(runs)}",
            "best for that budget alone": f"{best} {reached(alone)}",
            "difference": gain(*([100 * run.accuracy for run in of] for of in (runs, alone))),
        }
        for name, board in named(boards)
        for method, turned in one_model(board).items()
        if for_every_budget(method)
        for budget, runs in turned.items()
        for best, alone in _best(columns_of(board).get(budget, {}))
    ]


def _best(column):
    """[(method, its cells)], the most accurate of those for one budget that met it, of equal ones that with more seeds; nothing
    if there is none."""
    met = {
        method: runs
        for method, runs in column.items()
        if not for_every_budget(method) and mean(runs, "cost") <= runs[0].budget + TOO_DEAR
    }
    return sorted(met.items(), key=lambda one: (round(mean(one[1], "accuracy"), 6), len(one[1])))[-1:]
