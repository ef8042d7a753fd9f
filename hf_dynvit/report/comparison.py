"""Comparisons of patch agents: parts that fit together, means over seeds as a frame, tables and a picture."""

import json
from dataclasses import replace
from pathlib import Path

from pandas import DataFrame, isna
from transformers.utils import logging

from ..training.arguments import is_default
from .comparison_results import Comparison
from .markdown import ABSENT, Commands, rows, table
from .names import place, random_masks, reported_on
from .plots import curves_plot, drawn
from .schema import write


logger = logging.get_logger(__name__)

# What a run chooses for itself; everything else of a comparison is the same for all of its runs.
FREE = ("output_dir", "run_name", "seed", "agent", "agent_options")
SHARED = ("dataset", "steps", "batch_size", "evaluations", "device", "dtype", "threads", "versions")
FOUND = ("split", "split_files", "images", "crop_pct", "curves_on", "curve_images")  # known once the data is loaded
CLOSE = 0.005  # of the dense model's final accuracy: half a point
CURVES = (
    "Training is followed on the images that curves are of; top-1 is reported once, at the end, on others. Shares of time "
    "are means over the seeds that the dense model has too."
)


# ---------------------------------------------------------------------------------------------- parts


def check_same(parts):
    """Refuse comparisons whose runs cannot be compared with each other.

    Args:
        parts: name -> `Comparison`; the names are for the error.

    A training option that one part does not have was added later, and is its default there.

    Raises:
        ValueError: names the first setting that differs, and both values.
    """
    (name, first), *others = ((name, _settings(part)) for name, part in parts.items())
    for other, settings in others:
        for key in sorted(first.keys() | settings.keys()):
            values = first.get(key), settings.get(key)
            if key not in first or key not in settings:
                part, _, name = key.partition(".")
                if part == "training" and is_default(name, first.get(key, settings.get(key))):
                    continue
            if values in ((None, []), ([], None)):  # no looks, either way
                continue
            if values[0] != values[1] and not (key in FOUND and None in values):
                raise ValueError(
                    f"{name} and {other} were run with different settings: {key} is {values[0]!r} and {values[1]!r}"
                )


def merge(parts):
    """One comparison with the runs of all, variants in the order they come, seeds in theirs.

    Args:
        parts: name -> `Comparison`.

    Raises:
        ValueError: no parts, one that is no comparison or differs in a setting, or a run that two of them hold.
    """
    if not parts:
        raise ValueError("give comparisons to merge, got none")
    for name, part in parts.items():
        if not isinstance(part, Comparison):
            raise ValueError(f"{name} is no comparison of agents: its kind is {part.kind!r}")
    check_same(parts)
    runs = {}
    for name, part in parts.items():
        for run in part.runs:
            key = run.variant, run.seed
            if key in runs:
                raise ValueError(f"{name}: an earlier part holds variant {key[0]!r} with seed {key[1]} as well")
            runs[key] = run
    variants = list(dict.fromkeys(variant for variant, _ in runs))
    ordered = sorted(runs, key=lambda key: (variants.index(key[0]), key[1]))
    return replace(next(iter(parts.values())), runs=[runs[key] for key in ordered])


def _settings(part):
    """Name -> value of all that the runs share."""
    values = {name: getattr(part, name) for name in (*SHARED, *FOUND)}
    for group, settings in part.settings.items():
        values |= {f"{group}.{name}": value for name, value in settings.items() if name not in FREE}
    return values


# ---------------------------------------------------------------------------------------------- means


def summarise(runs):
    """A frame with a row for each variant, in order: means over its seeds, NaN where a number is not there.

    `time_share` is of the dense run ("none") with the same seed, the mean over the seeds that have one (`dense_seeds`).
    `close`: share of dense's time after which an evaluation during training first finds the accuracy of dense's last one
    less `CLOSE`, NaN unless all those seeds get there; `close_seeds`: how many do. `accuracy_deviation`: over seeds. `epsilon`:
    share of the masks that were drawn at random, NaN for agents that do not explore so.
    """
    dense = {run.seed: run for run in runs if run.variant == "none"}
    frame = DataFrame(
        [_facts(run, dense.get(run.seed)) for run in runs], index=[run.variant for run in runs], dtype=float
    )
    groups = frame.groupby(level=0, sort=False)
    means, counts = groups.mean(), groups.count()
    return means.assign(
        seeds=counts.seed,
        accuracy_deviation=groups.accuracy.std(),
        dense_seeds=counts.time_share,
        close_seeds=counts.close,
        close=means.close.where(counts.close == counts.time_share),
        epsilon=means.epsilon.where(counts.epsilon == counts.seed),
    )


def _facts(run, dense):
    """The numbers of one run; `dense`: the dense run with the same seed, or None."""
    agent, chosen = run.agent, run.chosen or {}
    return {
        "seed": run.seed,
        "accuracy": run.accuracy,
        "train_seconds": run.train_seconds,
        "time_share": run.train_seconds / dense.train_seconds if dense else None,
        "close": _close(run, dense) if dense else None,
        "agent_seconds": agent.seconds if agent else 0.0,
        "kept_share": run.kept_share,
        "epsilon": agent and agent.epsilon,
        "asked": agent and agent.n_patch_desired,
        "patches": agent and agent.patches,
        "first_mib": run.step_mib["first"],
        "last_mib": run.step_mib["last"],
        "chosen_accuracy": chosen.get("accuracy"),
        "chosen_cost": chosen.get("cost"),
    }


def _close(run, dense):
    """Share of the dense run's time after which `run` is as good as it, nearly; None if it never is."""
    wanted = dense.curve[-1]["accuracy"] - CLOSE
    reached = (point["seconds"] for point in run.curve if point["accuracy"] >= wanted)
    return next((seconds / dense.train_seconds for seconds in reached), None)


def mean_curves(runs):
    """Variant -> [(seconds, accuracy)], each point the mean over seeds."""
    points = DataFrame([{"variant": run.variant, **point} for run in runs for point in run.curve])
    points["index"] = [index for run in runs for index in range(len(run.curve))]
    means = points.groupby(["variant", "index"], sort=False)[["seconds", "accuracy"]].mean()
    groups = means.groupby(level="variant", sort=False)
    return {variant: list(own.itertuples(index=False, name=None)) for variant, own in groups}


# ---------------------------------------------------------------------------------------------- recipes/README.md


def write_number(value, form):
    return ABSENT if isna(value) else form.format(value)


def close_to_dense(row):
    """When a variant was as good as the dense model, or how many of its seeds were."""
    text = write_number(row.close, "{:.2f}")
    return text + (f" ({row.close_seeds} of {row.dense_seeds} seeds)" if isna(row.close) and row.close_seeds else "")


COMPARED = {  # of a row of `summarise`
    "agent": lambda row: row.Index + random_masks(None if isna(row.epsilon) else row.epsilon),
    "seeds": lambda row: row.seeds,
    "top-1 on all patches": lambda row: f"{100 * row.accuracy:.2f}",
    "deviation": lambda row: write_number(100 * row.accuracy_deviation, "{:.2f}"),
    "training": lambda row: f"{row.train_seconds:.1f} s",
    "of dense": lambda row: write_number(row.time_share, "{:.2f}"),
    f"to dense's top-1 − {100 * CLOSE:g}: of dense": close_to_dense,
    "of it the agent": lambda row: f"{row.agent_seconds:.1f} s",
    "asked for": lambda row: ABSENT if isna(row.asked) else f"{row.asked:g} of {row.patches:g}",
    "kept patches": lambda row: f"{100 * row.kept_share:.1f} %",
    "working memory of the first and last step": lambda row: f"{row.first_mib:.0f} and {row.last_mib:.0f} MiB",
    "top-1 on chosen patches at cost": lambda row: (
        ABSENT if isna(row.chosen_cost) else f"{100 * row.chosen_accuracy:.2f} at {row.chosen_cost:.3f}"
    ),
}


def comparison_section(comparisons):
    """Parts of Markdown: heading, and for each comparison its circumstances, table and commands; none without any."""
    parts = []
    for results in comparisons:
        commands, runs = Commands(), results.runs
        parts += [
            f"On {place(results)}, commit {commits(runs)}: "
            f"{results.dataset}, {results.steps} steps of {results.batch_size} images; top-1 on images: "
            f"{reported_on(results)}, curves on {results.curve_images:,} ({results.curves_on}); commands "
            f"{commands.refer([run.command for run in runs])}:",
            table(rows(COMPARED, ((row,) for row in summarise(runs).itertuples()))),
            commands.listing(),
        ]
    return ["### Agents compared", CURVES, *parts] if parts else []


def commits(results):
    """The distinct commits of results."""
    return " and ".join(dict.fromkeys(str(one.commit) for one in results))


# ---------------------------------------------------------------------------------------------- files


def save(results, folder):
    """Write compare.json with the summary, at once or not at all; returns its content."""
    summary = json.loads(summarise(results.runs).to_json(orient="index", double_precision=15))
    return write(Path(folder) / "compare.json", replace(results, summary=summary))


def publish(results, folder):
    """Write compare.json, compare.md and compare.png; the last needs matplotlib. Returns the content of the first."""
    content = save(results, folder)
    (Path(folder) / "compare.md").write_text("\n\n".join(comparison_section([results])) + "\n")
    drawn(curves_plot, mean_curves(results.runs), Path(folder) / "compare.png")
    return content
