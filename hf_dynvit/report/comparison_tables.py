"""What a comparison of patch agents found: means over seeds, curves, tables and a picture."""

import json
import os
import statistics
from pathlib import Path

from transformers.utils import logging

from .agent_pictures import curves_plot
from .names import random_masks, reported_on
from .tables import Commands, table


logger = logging.get_logger(__name__)

ABSENT = "–"
CLOSE = 0.005  # of the dense model's final accuracy: half a point
CURVES = (
    "Training is followed on the images that curves are of; top-1 is reported once, at the end, on others. Shares of time "
    "are means over the seeds that the dense model has too."
)


def summarise(runs):
    """Variant -> means over its seeds, and the deviation of the accuracy where there are several.

    Shares are of the dense run ("none") with the same seed, and means over the seeds that have one, None without any.
    "close": share of dense's time after which an evaluation during training first finds the accuracy of dense's last one
    less `CLOSE`, None unless all those seeds get there; "close_seeds": how many do, "dense_seeds": of how many.
    "epsilon": share of the masks that were drawn at random, None for agents that do not explore so.
    """
    dense = {run["seed"]: run for run in runs if run["variant"] == "none"}
    return {
        variant: _summary([run for run in runs if run["variant"] == variant], dense)
        for variant in dict.fromkeys(run["variant"] for run in runs)
    }


def _summary(own, dense):
    accuracies = [run["accuracy"] for run in own]
    chosen = [run["chosen"] for run in own if run["chosen"]]
    times = [run["train_seconds"] / dense[run["seed"]]["train_seconds"] for run in own if run["seed"] in dense]
    close = [_close(run, dense[run["seed"]]) for run in own if run["seed"] in dense]
    return {
        "seeds": len(own),
        "accuracy": statistics.mean(accuracies),
        "accuracy_deviation": statistics.stdev(accuracies) if len(own) > 1 else None,
        "train_seconds": statistics.mean(run["train_seconds"] for run in own),
        "time_share": _mean_of_all(times),
        "close": _mean_of_all(close),
        "close_seeds": sum(share is not None for share in close),
        "dense_seeds": len(close),
        "agent_seconds": statistics.mean(run["agent"]["seconds"] if run["agent"] else 0.0 for run in own),
        "kept_share": statistics.mean(run["kept_share"] for run in own),
        "epsilon": _mean_of_all([run["agent"].get("epsilon") for run in own if run["agent"]]),
        "asked": {name: own[0]["agent"][name] for name in ("n_patch_desired", "patches")} if own[0]["agent"] else None,
        "step_mib": {when: statistics.mean(run["step_mib"][when] for run in own) for when in ("first", "last")},
        "chosen": {name: statistics.mean(run[name] for run in chosen) for name in ("accuracy", "cost")}
        if chosen
        else None,
    }


def _close(run, dense):
    """Share of the dense run's time after which `run` is as good as it, nearly; None if it never is."""
    wanted = dense["curve"][-1]["accuracy"] - CLOSE
    reached = [point["seconds"] for point in run["curve"] if point["accuracy"] >= wanted]
    return reached[0] / dense["train_seconds"] if reached else None


def _mean_of_all(values):
    return None if not values or None in values else statistics.mean(values)


def mean_curves(runs):
    """Variant -> [(seconds, accuracy)], each point the mean over seeds."""
    curves = {}
    for run in runs:
        curves.setdefault(run["variant"], []).append([(p["seconds"], p["accuracy"]) for p in run["curve"]])
    return {
        variant: [
            tuple(statistics.mean(values) for values in zip(*points, strict=True)) for points in zip(*own, strict=True)
        ]
        for variant, own in curves.items()
    }


def comparison_section(comparisons):
    """Parts of Markdown: heading, and for each comparison its circumstances, table and commands; none without any."""
    parts = []
    for results in comparisons:
        commands = Commands()
        rows = [_cells(variant, row) for variant, row in summarise(results["runs"]).items()]
        commits = " and ".join(dict.fromkeys(str(run["commit"]) for run in results["runs"]))
        parts += [
            f"On {results['device']}, {results['threads']} threads, {results['dtype']}, commit {commits}: "
            f"{results['dataset']}, {results['steps']} steps of {results['batch_size']} images; top-1 on images: "
            f"{reported_on(results)}, curves on {results['curve_images']:,} ({results['curves_on']}); commands "
            f"{commands.refer([run['command'] for run in results['runs']])}:",
            table(rows),
            commands.listing(),
        ]
    return ["### Agents compared", CURVES, *parts] if parts else []


def _cells(variant, row):
    chosen, seeds = row["chosen"], row["seeds"]
    close = _write(row["close"], "{:.2f}")
    if row["close"] is None and 0 < row["close_seeds"]:
        close += f" ({row['close_seeds']} of {row['dense_seeds']} seeds)"
    return {
        "agent": variant + random_masks(row["epsilon"]),
        "seeds": str(seeds),
        "top-1 on all patches": f"{100 * row['accuracy']:.2f}",
        "deviation": ABSENT if row["accuracy_deviation"] is None else f"{100 * row['accuracy_deviation']:.2f}",
        "training": f"{row['train_seconds']:.1f} s",
        "of dense": _write(row["time_share"], "{:.2f}"),
        f"to dense's top-1 − {100 * CLOSE:g}: of dense": close,
        "of it the agent": f"{row['agent_seconds']:.1f} s",
        "asked for": "{n_patch_desired} of {patches}".format(**row["asked"]) if row["asked"] else ABSENT,
        "kept patches": f"{100 * row['kept_share']:.1f} %",
        "working memory of the first and last step": " and ".join(f"{mib:.0f}" for mib in row["step_mib"].values())
        + " MiB",
        "top-1 on chosen patches at cost": f"{100 * chosen['accuracy']:.2f} at {chosen['cost']:.3f}"
        if chosen
        else ABSENT,
    }


def _write(value, form):
    return ABSENT if value is None else form.format(value)


def save(results, folder):
    """Write compare.json, at once or not at all."""
    partial = Path(folder) / "compare.json.partial"
    partial.write_text(json.dumps(results | {"summary": summarise(results["runs"])}, indent=2) + "\n")
    os.replace(partial, Path(folder) / "compare.json")


def publish(results, folder):
    """Write compare.json, compare.md and compare.png; the last needs matplotlib."""
    save(results, folder)
    (Path(folder) / "compare.md").write_text("\n\n".join(comparison_section([results])) + "\n")
    try:
        curves_plot(mean_curves(results["runs"]), Path(folder) / "compare.png")
    except ImportError as error:
        logger.warning(f"no picture: {error}")
