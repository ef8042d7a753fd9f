"""Tables of results: the columns of each kind, the distinct commands below them, and Markdown."""

import shlex

from ..measure.dense import OURS
from .names import cost_spread, decides, masked, random_masks, reported_on, short
from .rivals import mean, percent, seeds


class Commands:
    """Distinct command lines, numbered as they come."""

    def __init__(self):
        self.numbers = {}

    def refer(self, lines):
        """One line or several -> "[1], [3]"."""
        lines = [lines] if isinstance(lines, str) else lines
        found = dict.fromkeys(self.numbers.setdefault(command(line), len(self.numbers) + 1) for line in lines)
        return ", ".join(f"[{number}]" for number in found)

    def listing(self):
        """A Markdown list of them all."""
        return "\n".join(f"{number}. `{line}`" for line, number in self.numbers.items())


def numbered(rows):
    """Rows whose "command" is a command line or a list of them -> a table that refers to them, and their list."""
    commands = Commands()
    rows = [{**row, "command": commands.refer(row["command"])} for row in rows]
    return [table(rows), commands.listing()]


def table(rows):
    """dicts with the same keys -> a Markdown table."""
    cells = [list(rows[0])] + [["---"] * len(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def command(line):
    """The command line with the folders of this machine cut to their last names."""
    return shlex.join(["=".join(short(part) for part in word.split("=", 1)) for word in shlex.split(line)])


PROVENANCE = ("device", "dtype", "batch", "seed", "commit", "command")


def training_row(runs):
    """One row for runs that differ by seed alone."""
    first, model = runs[0], runs[0]["settings"]["model"]
    resumed = sum(results["resumed"] for results in runs)
    return {
        "data": first["dataset"],
        "decides": decides(first) + masked(first) + agent_name(first),
        "budget": model["budget"] if first["gates"] else "–",
        **accuracy_columns(runs),
        "images seen": f"{mean(runs, 'images_seen'):,.0f}",
        "training": f"{mean(runs, 'train_seconds') / 60:.1f} min"
        + ("" if not resumed else " (resumed)" if len(runs) == 1 else f" ({resumed} resumed)"),
        **provenance(first, first["batch_size"]),
        "seed": seeds(runs),
        "command": [results["command"] for results in runs],
    }


def chosen_rows(runs):
    """A row for the same runs on the patches alone that their agent chooses, if they were evaluated on them."""
    if not runs[0].get("chosen"):
        return []
    row = training_row([{**results, **results["chosen"]} for results in runs])
    return [row | {"decides": row["decides"] + ", on the patches it chooses"}]


def evaluation_row(results):
    return {
        "model": short(results["model"]),
        "data": results["dataset"],
        "decides": decides(results) + masked(results),
        "budget": results["budget"] if results["gates"] else "–",
        **accuracy_columns([results]),
        **provenance(results, results["batch_size"]),
    }


def search_row(results):
    picked, without = results["picked"]["reported"], results["unmasked"]
    return {
        "model": short(results["model"]),
        "data": results["dataset"],
        "images from": results.get("images_from", results["split"]),
        "objectives": results["objectives"],
        "space": results["space"],
        "method": results["method"],
        "masks scored": results["masks_scored"],
        "minutes": f"{results['seconds'] / 60:.1f}",
        "images chosen, reported on": f"{results['images_to_choose_on']}, {results['images_reported_on']}",
        "no mask: top-1 at cost": f"{100 * without['accuracy']:.1f} at {without['cost']:.3f}",
        "picked: top-1 at cost": f"{100 * picked['accuracy']:.1f} at {picked['cost']:.3f}",
        "left in the network": f"{picked['layers']:.0%}",
        **provenance(results, results["settings"]["batch_size"]),
    }


def speed_row(results, row):
    fastest = min(row["dense_ms"], key=row["dense_ms"].get)
    return {
        "model": short(results["model"]),
        "cost": f"{row['timed_cost']:.3f}",
        "dense images/s": f"{row['dense_images_per_second']:.1f} ({fastest})",
        "packed images/s": f"{row['packed_images_per_second']:.1f}",
        "prepacked": prepacked(row),
        "speed-up": f"{row['speedup']:.2f}×",
        "of the MACs' promise": f"{row['realised']:.2f}",
        "against ours, no gates": gates_share(row),
        "peak MiB: dense; ours, no gates; packed": peaks(row, "dense", OURS, "packed"),
        "threads": results["threads"],
        **provenance(results, row["batch_size"]),
        "device": processor(results),
    }


def benchmark_row(row):
    fastest = min(row["dense_ms"], key=row["dense_ms"].get)
    return {
        "size": row["size"],
        "dtype": row["dtype"],
        "batch": row["batch"],
        "gates": row["gates"],
        "cost": f"{row['cost']:.3f}",
        "dense ms": f"{row['dense_ms'][fastest]:.1f} ({fastest})",
        "packed ms": f"{row['packed_ms']:.1f}",
        "prepacked": prepacked(row),
        "speed-up": f"{row['speedup']:.2f}×",
        "of the MACs' promise": f"{row['realised']:.2f}",
        "against ours, no gates": gates_share(row),
        "peak MiB: dense; ours, no gates; packed": peaks(row, leanest(row), OURS, row["gates"]),
        "rounds": row["rounds"],
    }


def step_rows(results):
    """A row for the gates, if they were timed, and for each agent."""
    kernel = min(results["dense_ms"], key=results["dense_ms"].get)
    measured = []
    if "packed_ms" in results:
        measured.append((results["gates"], "all", results, f"{results['packed_ms']:.0f} ms"))
    for row in results["agents"]:
        patches = f"{row['kept']:.1f} of {row['patches']}"
        measured.append((row["agent"], patches, row, f"{row['ms']:.0f} ms ({row['kernel']})"))
    return [
        {
            "model": short(results["model"]),
            "gates or agent": name,
            "patches": patches,
            "cost": f"{row['cost']:.3f}",
            "dense step, the fastest of eager and SDPA": f"{results['dense_ms'][kernel]:.0f} ms ({kernel})",
            "step": step,
            "of the dense time": f"{row['time_ratio']:.2f}",
            "of the least dense working memory": f"{row['memory_ratio']:.2f}",
            **provenance(results, results["batch_size"]),
        }
        for name, patches, row, step in measured
    ]


def prepacked(row):
    """Whether the packed model ran with prepacked weights."""
    return "yes" if row.get("prepacked") else "no"


def gates_share(row):
    """How much faster packed is than our model without gates, which is what skipping itself is worth."""
    return f"{row['gates_speedup']:.2f}×"


def leanest(row):
    """The dense model of a benchmark that holds least."""
    found = row.get("peak_mib", {})
    return min((name for name in row["dense_ms"] if name in found), key=found.get, default=None)


def peaks(row, *names):
    """Working memory of each, and of it the weights that are kept in another order; earlier versions did not have all."""
    found, kept = row.get("peak_mib", {}), row.get("prepacked_mib", {})
    if not all(name in found for name in names):
        return "–"
    return "; ".join(f"{found[name]:.1f}" + (f" ({kept[name]:.1f})" if kept.get(name) else "") for name in names)


def processor(results):
    """The device with its instructions; earlier versions did not say them."""
    found = results.get("instructions")
    return f"{results['device']} ({found})" if found else results["device"]


def circumstances(results, commands):
    """A benchmark's rows share all but what their columns say."""
    return (
        f"On {processor(results)}, {results['threads']} threads, seed {results['seed']}, commit {results['commit']}, "
        f"command {commands.refer(results['command'])}:"
    )


def accuracy_columns(runs):
    """Of one evaluation or training, or of several that differ by seed alone: means."""
    first = runs[0]
    return {
        "images": reported_on(first),
        "top-1": percent(runs) + (f" ({len(runs)} seeds)" if len(runs) > 1 else ""),
        "top-5": f"{100 * mean(runs, 'accuracy_top5'):.2f}",
        "cost": cost_spread(runs),
        "GMACs": f"{mean(runs, 'gmacs'):.3g}",
        "checkpoint: top-1 at cost": before(runs),
    }


def before(runs):
    """Top-1 and cost of what training started from, or what a model is compared with: a dense model, unless gates were kept."""
    given = [results.get("dense") or results.get("checkpoint") for results in runs]
    if not all(given):
        return "–"
    return f"{100 * mean(given, 'accuracy'):.2f} at {mean(given, 'cost'):.3f}"


def agent_name(results):
    """The agent that a training had, as an addition to a name."""
    agent = results["agent"]
    if not agent:
        return ""
    name = f", agent {agent['name']}, {agent['n_patch_desired']} of {agent['patches']} patches"
    return name + random_masks(agent.get("epsilon"))


def provenance(results, batch):
    values = {**results, "batch": batch}
    return {key: "–" if values[key] is None else values[key] for key in PROVENANCE}


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
