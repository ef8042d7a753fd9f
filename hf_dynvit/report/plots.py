"""Plots of numbers: usage per layer, speed, fronts of a search, curves of agents, kept patches."""

from transformers.utils import logging

from ..measure.usage import UsageMeter
from ..search.pareto import OBJECTIVES


logger = logging.get_logger(__name__)

INK, MUTED, TRACK, PAGE = "#1f1f1d", "#8a8983", "#e3e2dd", "#ffffff"
ATTENTION, MLP, HEADS = "#2a6fd6", "#e07b39", "#3b9b6d"
COLORS = [f"C{index}" for index in range(10)]
STYLES = ("-", "--", ":")
MARKERS = "os^Dv<>PhX"
LABELS = {
    "cost": "mean cost (MACs / MACs of the dense model)",
    "milliseconds": "mean ms of an image, by the table of latencies",
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


def drawn(draw, *args):
    """Whether `draw` has drawn; no, and a warning, without matplotlib: what was measured is kept without its picture."""
    try:
        draw(*args)
    except ImportError as error:
        logger.warning(f"no picture: {error}")
        return False
    return True


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
        shares = {int(layer): share for layer, share in shares.items()}  # strings after a trip through JSON
        layers, style = sorted(shares), {"marker": "o", "markersize": 4, "linewidth": 1.8, "clip_on": False}
        axis.plot(layers, [shares[layer] for layer in layers], color=color, label=label, **style)
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


def speed_plot(speeds, path):
    """`RandomSpeed` objects: realised fraction over batch size, one panel per size, a line for each gate set and dtype."""
    sizes, dtypes, gates = (
        list(dict.fromkeys(getattr(one, key) for one in speeds)) for key in ("size", "dtype", "gates")
    )
    batches = sorted({one.batch_size for one in speeds})
    figure = new_figure(2.5 + 3.5 * len(sizes), 4.2, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for label, dtype in dict.fromkeys((one.gates, one.dtype) for one in speeds):
            own = [one for one in speeds if (one.size, one.gates, one.dtype) == (size, label, dtype)]
            realised = {batches.index(one.batch_size): one.realised for one in own}
            kind = dtypes.index(dtype)
            style = {"linestyle": STYLES[kind], "marker": MARKERS[kind], "color": COLORS[gates.index(label) % 10]}
            panel.plot(sorted(realised), [realised[at] for at in sorted(realised)], **style, label=f"{label}, {dtype}")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=f"ViT {size}", xlabel="batch size", xticks=range(len(batches)), xticklabels=batches)
    panels[0].set_ylabel("realised fraction (speed-up x cost)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)


def front_plot(search, path):
    """Every mask of the front of a `Search`, as chosen and as reported, and the model without a mask."""
    (first, _), (second, _) = OBJECTIVES[search.objectives]
    scale = 100 if first == "error" else 1
    figure = new_figure(6.4, 4.2, layout="constrained")
    axis = figure.subplots()
    points = sorted(search.front, key=lambda point: point[second])
    reported = [point["reported"] for point in points]
    red = {"color": "tab:red", "ms": 9, "linestyle": "none"}
    for label, rows, style in (
        ("chosen on one half", points, {"color": MUTED, "marker": "o", "mfc": "none", "ms": 4}),
        ("reported on the other", reported, {"color": INK, "marker": "o", "ms": 4}),
        ("no mask", [search.unmasked], {"marker": "s", **red}),
        ("picked", [search.picked["reported"]], {"marker": "*", **red}),
    ):
        axis.plot([row[second] for row in rows], [scale * row[first] for row in rows], lw=1, label=label, **style)
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
