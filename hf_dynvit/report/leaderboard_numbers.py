"""The table of all that a board measured of each method at each budget: accuracy, cost and its spread, speed, memory."""

from statistics import mean as mean_of

from .markdown import ABSENT
from .names import cost_spread
from .rivals import counted, mean, percent


NUMBERS = (
    "The same in full. *Cost* is relative to the dense model: mean ± deviation over images (least–most). *Images/s* are those of the "
    "packed model, or of the model compiled as a whole (*compiled*) where that is faster, and in brackets those of the fastest dense "
    "model in the same run; *MiB* the working memory of a packed forward and, in brackets, of the leanest dense one. –: not timed."
)


def number_rows(board):
    """A row for the checkpoint, and one for each method and budget, untrained and tuned; seeds together."""
    sizes = sorted({speed.batch_size for cell in board.cells for speed in cell.throughput})
    return [
        _row("dense", False, None, [board.dense], sizes),
        *(
            _row(method, tuned, budget, runs, sizes)
            for (method, tuned), cells in board.by_cell().items()
            for budget, runs in cells.items()
        ),
    ]


def _row(method, tuned, budget, runs, sizes):
    more_than_five_classes = runs[0].accuracy_top5 is not None
    row = {
        "method": method,
        "": "tuned" if tuned else "untrained",
        "budget": ABSENT if budget is None else budget,
        "top-1": percent(runs) + counted(runs),
        "top-5": percent(runs, "accuracy_top5") if more_than_five_classes else ABSENT,
        "cost": cost_spread(runs),
        "GMACs": f"{mean(runs, 'gmacs'):.3f}",
    }
    for size in sizes:
        timed = [speed for run in runs for speed in getattr(run, "throughput", []) if speed.batch_size == size]
        row[f"images/s at batch {size}"] = _images(timed) if timed else ABSENT
        row[f"MiB at batch {size}"] = _memory(timed) if timed else ABSENT
    return row


def _images(timed):
    """Means of seeds, all by the way that is the faster one on average."""
    dense, ours = (mean(timed, f"{name}_images_per_second") for name in ("dense", "packed"))
    how = ""
    if all(speed.program_speedup for speed in timed):
        compiled = mean_of(speed.dense_images_per_second * speed.program_speedup for speed in timed)
        ours, how = max((ours, ""), (compiled, " compiled"))
    return f"{ours:.1f}{how} ({dense:.1f})"


def _memory(timed):
    ours, dense = (mean_of(speed.peak_mib[name] for speed in timed) for name in ("packed", "dense"))
    return f"{ours:.0f} ({dense:.0f})"
