"""Plots of numbers: usage per layer, speed, trained models, fronts of a search, curves of agents, kept patches."""

from collections import defaultdict

from ..measure.usage import UsageMeter
from ..search.pareto import OBJECTIVES


INK, MUTED, TRACK, PAGE = "#1f1f1d", "#8a8983", "#e3e2dd", "#ffffff"
ATTENTION, MLP, HEADS = "#2a6fd6", "#e07b39", "#3b9b6d"
COLORS = [f"C{index}" for index in range(10)]
STYLES = ("-", "--", ":")
MARKERS = "os^Dv<>P*X"
LABELS = {
    "cost": "mean cost (MACs / MACs of the dense model)",
    "latency": "expected time in layers / that of the dense model",
    "layers": "share of sub-layers left in the network",
    "error": "error, %",
    "reward": "mean reward",
}


def new_figure(width, height, **options):
    """An empty matplotlib figure, in inches; ImportError with advice where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no state shared with the caller
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install hf_dynvit[demo]") from error
    return Figure(figsize=(width, height), **options)


def plot_usage(usage, path):
    """Per layer the mean share of tokens, heads and sub-layers that is used.

    Args:
        usage: `UsageMeter.per_layer()`, that is kind -> {layer: share}, or the L `LayerDecisions` of a batch.
        path: the PNG (or PDF, SVG) to write.

    Raises:
        ValueError: nothing is decided anywhere.
    """
    if not isinstance(usage, dict):
        meter = UsageMeter()
        meter.update(usage)
        usage = meter.per_layer()
    panels = {
        "tokens": [("attention_tokens", "attention", ATTENTION), ("mlp_tokens", "MLP", MLP)],
        "sub-layers": [("attention", "attention", ATTENTION), ("mlp", "MLP", MLP)],
        "heads": [("heads", "heads", HEADS)],
    }
    panels = {name: [line for line in lines if line[0] in usage] for name, lines in panels.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"there is no usage to plot: no layer decides anything (kinds: {sorted(usage)})")
    figure = new_figure(3.6 * len(panels) + 0.5, 2.9, layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        _usage_panel(axis, name, [(usage[kind], label, color) for kind, label, color in lines])
    axes[0].set_ylabel("share used", color=INK)
    figure.savefig(path, dpi=160, facecolor=PAGE)


def _usage_panel(axis, name, lines):
    for shares, label, color in lines:
        layers = sorted(shares, key=int)  # keys are strings after a trip through JSON
        axis.plot(
            [int(layer) for layer in layers],
            [shares[layer] for layer in layers],
            marker="o",
            markersize=4,
            linewidth=1.8,
            color=color,
            label=label,
            clip_on=False,
        )
    axis.set_title(name, loc="left", fontsize=10, color=INK)
    axis.set_xlabel("layer", color=INK)
    axis.set_ylim(0, 1)
    axis.margins(x=0.04)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.grid(axis="y", color=TRACK, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(TRACK)
    axis.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best")


def speed_plot(rows, path):
    """Realised fraction over batch size: one panel per size, a colour per gate set, a line and marker per dtype."""
    sizes, dtypes, gates = (list(dict.fromkeys(row[key] for row in rows)) for key in ("size", "dtype", "gates"))
    batches = sorted({row["batch"] for row in rows})
    figure = new_figure(2.5 + 3.5 * len(sizes), 4.2, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        lines = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["batch"]):
            if row["size"] == size:
                lines[row["gates"], row["dtype"]].append((batches.index(row["batch"]), row["realised"]))
        for (label, dtype), points in lines.items():
            kind = dtypes.index(dtype)
            color = COLORS[gates.index(label) % len(COLORS)]
            style = {"linestyle": STYLES[kind], "marker": MARKERS[kind], "color": color}
            panel.plot(*zip(*points, strict=True), **style, label=f"{label}, {dtype}")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=f"ViT {size}", xlabel="batch size", xticks=range(len(batches)), xticklabels=batches)
    panels[0].set_ylabel("realised fraction (speed-up x cost)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)


def models_plot(rows, path):
    """Accuracy over mean cost; beside it the measured speed-up, and the line that the cost alone predicts."""
    figure = new_figure(10, 4.2, layout="constrained")
    accuracy, speed = figure.subplots(1, 2)
    models, kinds = (list(dict.fromkeys(key(row) for row in rows)) for key in (_model, _circumstances))
    for row in rows:
        color = COLORS[models.index(_model(row)) % len(COLORS)]
        marker = MARKERS[kinds.index(_circumstances(row)) % len(MARKERS)]
        accuracy.plot(row["cost"], 100 * row["accuracy"], "o", color=color)
        speed.plot(row["timed_cost"], row["speedup"], marker, color=color)
    for model, color in zip(models, COLORS, strict=False):
        accuracy.plot([], [], "o", color=color, label=model)
    for kind, marker in zip(kinds, MARKERS, strict=False):
        speed.plot([], [], marker, color="grey", label=kind)
    costs = [row["timed_cost"] for row in rows]
    grid = [min(costs) + (max(costs) - min(costs)) * step / 50 for step in range(51)]
    speed.plot(grid, [1 / cost for cost in grid], color="grey", linewidth=0.8, label="predicted: 1 / cost")
    accuracy.set(xlabel="mean cost (1 = dense)", ylabel="top-1 accuracy (%)")
    speed.set(xlabel="mean cost (1 = dense)", ylabel="speed-up over the fastest dense model")
    for panel in (accuracy, speed):
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _model(row):
    return row["model"]


def _circumstances(row):
    return f"{row['dtype']}, batch {row['batch']}"


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


def curves_plot(curves, path):
    """Accuracy against measured seconds of training, to a PNG file.

    Args:
        curves: variant -> list of (seconds, accuracy in [0, 1]) in the order of training.
    """
    figure = new_figure(6.4, 4.2, layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        style = {"color": INK, "linewidth": 2.0} if name == "none" else {"linewidth": 1.4}
        seconds, accuracies = zip(*points, strict=True)
        label = "all patches" if name == "none" else name
        axis.plot(seconds, [100 * accuracy for accuracy in accuracies], marker="o", markersize=4, label=label, **style)
    axis.set(xlabel="measured training time, s", ylabel="top-1 on all patches, %")
    axis.grid(color=TRACK, linewidth=0.8)
    axis.tick_params(labelsize=8.5, colors=MUTED)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, facecolor=PAGE)


def keep_map_plot(shares, name, path):
    """shares (rows, columns) of the training images that kept each patch, as numbers and shades, to a PNG file."""
    figure = new_figure(0.55 * shares.shape[1] + 1.0, 0.5 * shares.shape[0] + 0.7, layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    if shares.numel() <= 256:
        for row, values in enumerate(shares.tolist()):
            for column, share in enumerate(values):
                color = PAGE if share > 0.6 else INK
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"{name}: kept in training, % of images", fontsize=8, color=INK, loc="left")
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path, dpi=150, facecolor=PAGE)
