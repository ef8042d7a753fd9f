"""What stands beside the speed tables: why a ratio can exceed what the MACs promise, and the dense model in other runtimes."""

from ..measure.dense import OURS
from .result_rows import processor
from .tables import short


def beyond_promise(*runs):
    """A paragraph for a speed table of which some rows gain more time than MACs; none where none does.

    Args:
        runs: lists of rows, each the rows of a benchmark or the `throughput` of an evaluation.
    """
    rows = [row for run in runs for row in run]
    above = [row for row in rows if row["realised"] > 1]
    if not above:
        return []
    most = max(above, key=lambda row: row["realised"])
    parts = [
        f"{len(above)} of {len(rows)} rows gain more than the MACs promise, {most['realised']:.2f} of it at most. MACs are "
        "no measure of time: softmax, normalisation and copies count none, and attention's time grows with the square of "
        "the tokens."
    ]
    opened = [row for row in above if str(row.get("gates", "")).startswith("all open")]
    if opened:
        parts.append(f"{len(opened)} of them skip nothing (all gates open): that much is noise or the packed code.")
    longer = [_larger_batches(points) for run in runs for points in _by_setting(run)]
    if max(longer, default=1) > 1:
        parts.append(
            f"Our own model without gates takes up to {max(longer):.2f} times as long for each image in a larger "
            "batch than in a smaller one: with fewer rows that loss is spared."
        )
    return [" ".join(parts)]


def _by_setting(rows):
    """Lists of (batch, milliseconds per image of our model without gates) of the same model and dtype."""
    groups = {}
    for row in rows:
        batch, ms = row.get("batch_size", row.get("batch")), row["dense_ms"].get(OURS)
        if ms is not None:
            key = row.get("size"), row.get("dtype")
            groups.setdefault(key, set()).add((batch, ms / batch))
    return [sorted(group) for group in groups.values()]


def _larger_batches(points):
    """How much longer an image takes at a larger batch than at a smaller one, at most; 1 if no longer."""
    ratios = [later / earlier for at, (_, earlier) in enumerate(points) for batch, later in points[at + 1 :]]
    return max([1.0, *ratios])


def runtime_rows(results):
    """A row for each way that an evaluation ran the dense model in, by the time of each batch size; none without runtimes."""
    measured = results.get("runtimes")
    if not measured:
        return []
    fastest = {
        row["batch_size"]: min(row["dense_ms"].items(), key=lambda pair: pair[1]) for row in results["throughput"]
    }
    timed = [name for row in results["throughput"] for name in row["other_ms"]]
    rows = []
    for name in dict.fromkeys([*measured, *timed]):
        found = measured.get(name, {})
        times = []
        for row in results["throughput"]:
            ms, batch = row["other_ms"].get(name), row["batch_size"]
            if ms is not None:
                dense = fastest[batch][1]
                times.append(
                    f"{1e3 * batch / ms:.1f} ({batch}; packed is {ms / row['packed_ms']:.2f}×, dense {ms / dense:.2f}×)"
                )
        rows.append(
            {
                "model": short(results["model"]),
                "dense model in": name,
                "top-1": f"{100 * found['accuracy']:.2f}"
                if "accuracy" in found
                else f"skipped: {found.get('skipped', '–')}",
                "images": found.get("images", "–"),
                "same guess as dense": f"{found['agrees']:.1%}" if "agrees" in found else "–",
                "images/s by batch, and how much faster packed and the fastest dense model in PyTorch are": ", ".join(
                    times
                )
                or "–",
                "threads": results["threads"],
                "device": processor(results),
                "dtype of packed": results["dtype"],
                **{key: results[key] for key in ("seed", "commit", "command")},
            }
        )
    return rows
