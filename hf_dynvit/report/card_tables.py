"""The tables of a model card, as Markdown; each is empty when nothing of it was measured."""

from .tables import command


ABSENT = "–"


def results_table(results):
    """Top-1, top-5, cost and GMACs of the dense model (if measured) and of this one."""
    dense = results.get("dense") or {}
    columns = {
        "accuracy": ("top-1", lambda share: f"{100 * share:.2f} %"),
        "accuracy_top5": ("top-5", lambda share: f"{100 * share:.2f} %"),
        "cost": ("cost", lambda cost: f"{cost:.3f}"),
        "cost_std": ("± over images", lambda deviation: f"{deviation:.3f}"),
        "cost_min": ("least", lambda cost: f"{cost:.3f}"),
        "cost_max": ("most", lambda cost: f"{cost:.3f}"),
        "gmacs": ("GMACs per image", lambda gmacs: f"{gmacs:.3g}"),
    }
    columns = {
        key: column for key, column in columns.items() if results.get(key) is not None or dense.get(key) is not None
    }
    if not columns:
        return ""
    rows = [("dense", dense)] if dense else []
    rows.append(("this model", results))
    return markdown_table(
        ["", *(heading for heading, _ in columns.values())],
        [[name, *(_write(values, key, show) for key, (_, show) in columns.items())] for name, values in rows],
    )


def throughput_table(throughput):
    """Images per second of the dense and of the packed model, for each batch size."""
    columns = {
        "batch_size": ("batch", str),
        "dense_images_per_second": ("dense, images/s", lambda rate: f"{rate:,.1f}"),
        "packed_images_per_second": ("packed, images/s", lambda rate: f"{rate:,.1f}"),
        "speedup": ("speed-up", lambda ratio: f"{ratio:.2f}×"),
    }
    columns = {
        key: column for key, column in columns.items() if any(row.get(key) is not None for row in throughput or [])
    }
    if not columns:
        return ""
    rows = [[_write(row, key, show) for key, (_, show) in columns.items()] for row in throughput]
    return markdown_table([heading for heading, _ in columns.values()], rows)


def usage_table(usage):
    """Per layer the mean share of each kind of unit; `usage` as `UsageMeter.per_layer` gives it."""
    headings = {
        "attention_tokens": "tokens in attention",
        "mlp_tokens": "tokens in MLP",
        "heads": "heads",
        "attention": "attention runs",
        "mlp": "MLP runs",
    }
    usage = {kind: {int(layer): share for layer, share in layers.items()} for kind, layers in (usage or {}).items()}
    kinds = [kind for kind in headings if usage.get(kind)]
    layers = sorted({layer for kind in kinds for layer in usage[kind]})
    rows = [
        [str(layer), *(_write(usage[kind], layer, lambda share: f"{100 * share:.0f} %") for kind in kinds)]
        for layer in layers
    ]
    return markdown_table(["layer", *(headings[kind] for kind in kinds)], rows) if rows else ""


def measured_table(results):
    """What the numbers depend on: command, device, dtype, batch, seed, commit, versions."""
    pairs = {name: results.get(name) for name in ("device", "dtype", "threads", "batch_size", "seed", "commit")}
    if results.get("versions"):
        pairs["versions"] = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    if results.get("command"):
        pairs["command"] = f"`{command(results['command'])}`"
    return pairs_table(pairs)


def pairs_table(pairs):
    """name -> value, one per row, floats to six digits; None is left out."""
    rows = [
        [name, f"{value:.6g}" if isinstance(value, float) else str(value)]
        for name, value in (pairs or {}).items()
        if value is not None
    ]
    return markdown_table(["", ""], rows) if rows else ""


def markdown_table(headings, rows):
    """Lists of strings -> a Markdown table; the first column is aligned left, the others right if there are several."""
    rules = ["---", *("---:" if len(headings) > 2 else "---" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in [headings, rules, *rows])


def _cell(text):
    return " ".join(text.replace("|", "\\|").split())


def _write(values, key, show):
    return show(values[key]) if values.get(key) is not None else ABSENT
