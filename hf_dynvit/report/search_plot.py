"""The picture of a search: every mask of the front, as chosen and as reported, and the model without a mask."""

from ..search.pareto import OBJECTIVES
from .drawing import INK, MUTED, new_figure


LABELS = {
    "cost": "mean cost (MACs / MACs of the dense model)",
    "latency": "expected time in layers / that of the dense model",
    "layers": "share of sub-layers left in the network",
    "error": "error, %",
    "reward": "mean reward",
}


def front_plot(results, path):
    """Draw the content of front.json (recipes/search.py) to a PNG file."""
    (first, _), (second, _) = OBJECTIVES[results["objectives"]]
    scale = 100 if first == "error" else 1
    figure = new_figure(6.4, 4.2, layout="constrained")
    axis = figure.subplots()
    points = sorted(results["front"], key=lambda point: point[second])
    for label, rows, style in (
        ("chosen on one half", points, {"color": MUTED, "marker": "o", "mfc": "none"}),
        ("reported on the other", [point["reported"] for point in points], {"color": INK, "marker": "o"}),
    ):
        axis.plot(
            [row[second] for row in rows], [scale * row[first] for row in rows], **style, ms=4, lw=1, label=label
        )
    for label, row, marker in (
        ("no mask", results["unmasked"], "s"),
        ("picked", results["picked"]["reported"], "*"),
    ):
        axis.plot(row[second], scale * row[first], marker, color="tab:red", ms=9, label=label, linestyle="none")
    axis.set(xlabel=LABELS[second], ylabel=LABELS[first])
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
