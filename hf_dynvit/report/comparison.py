"""Comparisons of patch agents: parts that fit together, means over seeds, and their tables."""

import json
import os
import statistics
from pathlib import Path

from transformers.utils import logging

from .names import random_masks, reported_on
from .plots import curves_plot
from .tables import Commands, table


KIND = "comparison of agents"
# What a run chooses for itself; everything else of a comparison is the same for all of its runs.
FREE = ("output_dir", "run_name", "seed", "agent", "agent_options")
SHARED = ("kind", "dataset", "steps", "batch_size", "evaluations", "device", "dtype", "threads", "versions")
FOUND = ("split", "split_files", "images", "curves_on", "curve_images")  # known once the data is loaded


def check_same(parts):
    """Refuse comparisons whose runs cannot be compared with each other.

    Args:
        parts: name -> comparison; the names are for the error.

    Raises:
        ValueError: names the first setting that differs, and both values.
    """
    (name, first), *others = parts.items()
    wanted = _settings(first)
    for other, content in others:
        settings = _settings(content)
        for key in sorted(wanted.keys() | settings.keys()):
            values = wanted.get(key), settings.get(key)
            if values[0] != values[1] and not (key in FOUND and None in values):
                raise ValueError(
                    f"{name} and {other} were run with different settings: {key} is {values[0]!r} and {values[1]!r}"
                )


def merge(parts):
    """One comparison with the runs of all, variants in the order they come, seeds in theirs.

    Args:
        parts: name -> comparison.

    Raises:
        ValueError: no parts, one that is no comparison or differs in a setting, or a run that two of them hold.
    """
    if not parts:
        raise ValueError("give comparisons to merge, got none")
    for name, content in parts.items():
        if content.get("kind") != KIND:
            raise ValueError(f"{name} is no comparison of agents: its kind is {content.get('kind')!r}")
    check_same(parts)
    runs = {}
    for name, content in parts.items():
        for run in content["runs"]:
            key = run["variant"], run["seed"]
            if key in runs:
                raise ValueError(f"{name}: an earlier part holds variant {key[0]!r} with seed {key[1]} as well")
            runs[key] = run
    variants = list(dict.fromkeys(variant for variant, _ in runs))
    ordered = sorted(runs, key=lambda key: (variants.index(key[0]), key[1]))
    return {**next(iter(parts.values())), "runs": [runs[key] for key in ordered]}


def _settings(content):
    """Name -> value of all that the runs share."""
    values = {name: content.get(name) for name in (*SHARED, *FOUND)}
    for group, settings in content["settings"].items():
        values |= {f"{group}.{name}": value for name, value in settings.items() if name not in FREE}
    return values


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


SAME_TIME = 0.02  # of the dense model's: smaller differences are noise
OURS = "agentvit-plus"
BEST = "the best other one in no more time"
INTRODUCTION = (
    "Fewer patches in training, all of them afterwards. Top-1 in per cent, ± its deviation over seeds, and in which share "
    "of the time of the dense model. *The same at random*: as many patches by the same schedule, merged or not alike. *The "
    "best other one* is the most accurate of all that took no more time, whatever chooses its patches, the dense model in "
    "fewer steps among them. –: not run."
)


def front_comparison_rows(comparisons):
    """A row for each variant of `agentvit-plus`; what it lacks is "–", and seeds are counted where they are fewer.

    The best other one is chosen on the images that are reported, which can only favour it.
    """
    return [row for results in comparisons for row in _front_rows(results)]


def _front_rows(results):
    summary = summarise(results["runs"])
    facts = {run["variant"]: _facts(run) for run in reversed(results["runs"])}
    rows = []
    for ours in summary:
        if _name(ours) != OURS:
            continue
        as_fast = [other for other in summary if _name(other) != OURS and other != "none"]
        as_fast = [other for other in as_fast if _no_slower(summary[other], summary[ours])]
        at_random = [other for other in summary if _name(other) in ("random", "progressive")]
        twin = next((other for other in at_random if facts[other] == facts[ours]), None)
        shown = {
            "dense": "none" if "none" in summary else None,
            OURS: ours,
            "the same at random": twin,
            "dense in fewer steps": _best([other for other in as_fast if _name(other) == "none"], summary),
            BEST: _best(as_fast, summary),
        }
        runs = [run for run in results["runs"] if run["variant"] in shown.values()]
        most = summary[ours]["seeds"]
        rows.append(
            {
                "data": f"{results['dataset']}: {reported_on(results)}; {results['steps']} steps of "
                f"{results['batch_size']} images",
                "seeds": most,
                **{heading: _cell(variant, summary, most, heading == BEST) for heading, variant in shown.items()},
                "device": f"{results['device']}, {results['threads']} threads, {results['dtype']}",
                "commit": " and ".join(dict.fromkeys(str(run["commit"]) for run in runs)),
                "command": [run["command"] for run in runs],
            }
        )
    return rows


def _name(variant):
    return variant.partition(":")[0]


def _facts(run):
    """What a choice at random has to share with a learned one: patches, schedule, merging, steps."""
    agent = run["agent"] or {"n_patch_desired": None, "options": {}}
    options = (agent["options"].get(name) for name in ("return_fraction", "merge"))
    return agent["n_patch_desired"], *options, run["curve"][-1]["step"]


def _no_slower(other, ours):
    """By shares of the dense time, which machines with other work beside them spoil less; in seconds where it lacks."""
    if None in (other["time_share"], ours["time_share"]):
        return other["train_seconds"] <= ours["train_seconds"] * (1 + SAME_TIME)
    return other["time_share"] <= ours["time_share"] + SAME_TIME


def _best(variants, summary):
    return max(variants, key=lambda variant: summary[variant]["accuracy"], default=None)


def _cell(variant, summary, most, named):
    """ "random: 81.52 ± 0.32 in 0.61 (merge=true), 2 seeds"; seeds where there are others than ours has."""
    if variant is None:
        return ABSENT
    row, (name, _, options) = summary[variant], variant.partition(":")
    deviation = "" if row["accuracy_deviation"] is None else f" ± {100 * row['accuracy_deviation']:.2f}"
    share = "" if row["time_share"] is None or variant == "none" else f" in {row['time_share']:.2f}"
    written = f"{100 * row['accuracy']:.2f}{deviation}{share}"
    written = f"{'dense' if name == 'none' else name}: {written}" if named else written
    written += f" ({options.replace(',', ', ')})" if options else ""
    return written + ("" if row["seeds"] == most else f", {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}")
