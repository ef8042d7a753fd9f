"""What a benchmark found, as Markdown tables and as plots."""

from ..measure.dense import OURS


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
