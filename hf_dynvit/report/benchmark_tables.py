"""What a benchmark found, as Markdown tables and as plots."""

from collections import defaultdict

import matplotlib
from matplotlib.figure import Figure

from ..measure.dense import OURS


COLORS = matplotlib.color_sequences["tab10"]
STYLES = ("-", "--", ":")
MARKERS = "os^Dv<>P*X"


def markdown(rows):
    """Dicts -> a Markdown table with a column for each key; floats with the digits that mean something."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    first = {name: value for row in reversed(rows) for name, value in row.items()}
    lines = [header, ["---:" if isinstance(first[name], (int, float)) else "---" for name in header]]
    lines += [[_cell(row.get(name, "")) for name in header] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value):
    return f"{value:.{3 if abs(value) < 10 else 1}f}" if isinstance(value, float) else str(value)


def speed_table(rows):
    """The rows of `benchmark_speed.measure` in the order and under the names a reader needs."""
    kernels = list(dict.fromkeys(kernel for row in rows for kernel in row["dense_ms"]))
    table = []
    for row in rows:
        line = {name: row[name] for name in ("size", "dtype", "batch", "gates", "prepacked")} | {
            "mean cost": row["cost"]
        }
        line |= {f"dense {kernel} ms": row["dense_ms"].get(kernel, "") for kernel in kernels}
        line |= {f"{name} ms": ms for name, ms in row["other_ms"].items()}
        line |= {"packed ms": row["packed_ms"], "packed / dense": 1 / row["speedup"], "speed-up": row["speedup"]}
        line |= {"predicted": row["predicted"], "realised fraction": row["realised"]}
        line |= {"against ours, no gates": row["gates_speedup"]}
        dense = min(row["peak_mib"][kernel] for kernel in row["dense_ms"])
        line |= {"dense peak MiB": dense, "ours, no gates peak MiB": row["peak_mib"][OURS]}
        line |= {"packed peak MiB": row["peak_mib"][row["gates"]]}
        table.append(line)
    return markdown(table)


def speed_plot(rows, path):
    """Realised fraction over batch size: one panel per size, a colour per gate set, a line and marker per dtype."""
    sizes, dtypes, gates = (list(dict.fromkeys(row[key] for row in rows)) for key in ("size", "dtype", "gates"))
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(2.5 + 3.5 * len(sizes), 4.2), layout="constrained")
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


def models_table(rows):
    """The rows of `benchmark_models.compare` as a table."""
    table = []
    for row in rows:
        line = {name: row[name] for name in ("model", "dtype")} | {"top-1 %": f"{100 * row['accuracy']:.2f}"}
        line |= {"images": row["images"], "mean cost": row["cost"], "batch": row["batch"]}
        line |= {"dense images/s": row["dense_images_per_s"], "packed images/s": row["packed_images_per_s"]}
        line |= {f"{name} images/s": 1e3 * row["batch"] / ms for name, ms in row["other_ms"].items()}
        line |= {"speed-up": row["speedup"], "predicted": row["predicted"], "realised fraction": row["realised"]}
        line |= {"against ours, no gates": row["gates_speedup"]}
        line |= {f"{name} peak MiB": peak for name, peak in row["peak_mib"].items()}
        table.append(line)
    return markdown(table)


def models_plot(rows, path):
    """Accuracy over mean cost; beside it the measured speed-up, and the line that the cost alone predicts."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
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
