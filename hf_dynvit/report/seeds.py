"""Training runs that differ by their seed alone, told from all others and summed up."""

import json
import statistics


# What a seed changes in the settings besides itself, and what says nothing about the training.
FREE_SETTINGS = (
    "seed",
    "data_seed",
    "output_dir",
    "logging_dir",
    "run_name",
    "hub_model_id",
    "resume_from_checkpoint",
)
SAME_FACTS = (
    "dataset",
    "split",
    "split_files",
    "images",
    "device",
    "dtype",
    "threads",
    "batch_size",
    "processes",
    "versions",
    "commit",
)


def by_seed(trainings):
    """results.json contents -> lists of those that differ by seed alone, by rising seed; in order of first appearance.

    Runs with the same seed are never summed up: the second one begins a list of its own.
    """
    groups = {}
    for results in trainings:
        identity, again = _identity(results), 0
        while results["seed"] in groups.get((identity, again), {}):
            again += 1
        groups.setdefault((identity, again), {})[results["seed"]] = results
    return [[runs[seed] for seed in sorted(runs, key=_numbers_first)] for runs in groups.values()]


def mean(runs, name):
    """Mean of a number over runs."""
    return statistics.mean(results[name] for results in runs)


def percent(runs, name="accuracy"):
    """A share in per cent: "52.80"; of several runs "52.80 ± 0.31", the sample standard deviation."""
    text = f"{100 * mean(runs, name):.2f}"
    if len(runs) == 1:
        return text
    return f"{text} ± {100 * statistics.stdev(results[name] for results in runs):.2f}"


def seeds(runs):
    """ "0, 1, 2"; a run without a seed has "–"."""
    return ", ".join("–" if results["seed"] is None else str(results["seed"]) for results in runs)


def _identity(results):
    training = {name: value for name, value in results["settings"]["training"].items() if name not in FREE_SETTINGS}
    facts = {name: results.get(name) for name in SAME_FACTS}
    return json.dumps([facts, {**results["settings"], "training": training}], sort_keys=True)


def _numbers_first(seed):
    return (seed is None, seed)
