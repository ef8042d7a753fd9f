"""Which results belong together: runs that differ by seed alone, and the rivals of a model on the same images."""

import json
import statistics
from typing import NamedTuple

from .names import has_gates, masked, short, units


SAME_COST = 0.02  # a static mask may cost this much more than the policy that it is compared with
WITHOUT_MASK = 0.999  # what has no gates and costs less has a mask
SAME_TRAINING = 0.01  # relative difference in images seen
# Settings that two trainings by the same recipe share; how gates are taught, the teacher included, is theirs alone.
SAME_RECIPE = (
    ("data", "min_crop_area"),
    ("training", "learning_rate"),
    ("training", "lr_scheduler_type"),
    ("training", "weight_decay"),
)


class Policy(NamedTuple):
    """What was measured of one kind of policy at one budget.

    Attributes:
        dataset, name, budget: what tells it from others; `name` says what it decides, and the mask it acts in.
        trainings: lists of results that differ by seed alone. evaluations: results.
    """

    dataset: str
    name: str
    budget: float
    trainings: list
    evaluations: list

    def first(self):
        """The results that rivals are held to: of training, else of evaluation."""
        return self.trainings[0][0] if self.trainings else self.evaluations[0]

    def cost(self):
        return mean(self.trainings[0] if self.trainings else self.evaluations[:1], "cost")

    def is_of(self, path):
        """Whether a folder holds this policy."""
        known = [results["settings"]["training"].get("output_dir") for runs in self.trainings for results in runs]
        return short(path) in {short(one) for one in known + [results["model"] for results in self.evaluations] if one}

    def starts(self):
        """The checkpoints it was trained from, or is compared with."""
        found = [start(runs) for runs in self.trainings] + [results["dense_model"] for results in self.evaluations]
        return {short(path) for path in found if path}


def policies(trainings, evaluations):
    """`Policy` objects; trainings as `by_seed` gives them."""
    found = {}

    def policy_of(results, budget):
        key = results["dataset"], policy_name(results), budget
        return found.setdefault(key, Policy(*key, [], []))

    for runs in trainings:
        policy_of(runs[0], runs[0]["settings"]["model"]["budget"]).trainings.append(runs)
    for results in evaluations:
        policy_of(results, results["budget"]).evaluations.append(results)
    return [policy for policy in found.values() if policy.name is not None]


def policy_name(results):
    """What a policy of layer skipping decides, by which preset and inside which mask; None for anything else."""
    if not has_gates(results, "block"):
        return None
    gates = results["gates"]
    apart = any(gate.get("granularity") == "sublayer" for gate in gates)
    name = "attention and MLP apart" if apart else "blocks"
    name += ", decided up front" if any(gate.get("upfront") for gate in gates) else ""
    name += f" ({results['preset']})" if results["preset"] else ""
    return name + masked(results)


def start(runs):
    """The checkpoint that training started from."""
    return runs[0]["settings"]["model"]["model_name_or_path"]


def same_images(one, other):
    return all(one[name] == other[name] for name in ("dataset", "split", "split_files", "images"))


def trained_alike(runs, trainings):
    """(dense, random): of all trainings those by the same recipe (`same_recipe`), without gates or mask, or with
    random gates of the same budget that decide on the same kind of units, blocks apart from patches."""
    first = runs[0]
    alike = [others for others in trainings if same_recipe(first, others[0])]
    dense = [others for others in alike if not others[0]["gates"] and not others[0]["layer_mask"]]
    random = [
        others
        for others in alike
        if has_gates(others[0], "random") and ("patch" in units(others[0])) == ("patch" in units(first))
        if others[0]["settings"]["model"]["budget"] == first["settings"]["model"]["budget"]
    ]
    return dense, random


def same_recipe(one, other):
    """Whether two trainings began at the same checkpoint, saw as many images, and were reported on the same ones.

    Not one with an agent, which gave it fewer patches to train on.
    """
    more = abs(other["images_seen"] - one["images_seen"]) / max(1, one["images_seen"])
    return (
        same_images(one, other)
        and more <= SAME_TRAINING
        and not other["agent"]
        and same_start(one, other)
        and all(one["settings"][part].get(name) == other["settings"][part].get(name) for part, name in SAME_RECIPE)
    )


def same_start(one, other):
    """Whether two trainings began at the same weights; by the name of the checkpoint where a file does not know them."""
    known = [results.get("start_weights") for results in (one, other)]
    return known[0] == known[1] if all(known) else start([one]) == start([other])


def best_mask(policy, evaluations):
    """The most accurate evaluation of a static mask on the same images at the cost of the policy, or None."""
    most = policy.cost() + SAME_COST
    masks = [
        results
        for results in evaluations
        if not results["gates"] and results["cost"] < WITHOUT_MASK and results["cost"] <= most
        if same_images(results, policy.first())
    ]
    return max(masks, key=lambda results: results["accuracy"], default=None)


def dense_checkpoint(policy, evaluations):
    """(results that hold it, accuracy) of the dense checkpoint on the same images, or None."""
    own = [results for runs in policy.trainings for results in runs] + policy.evaluations
    others = [results for results in evaluations if short(results["dense_model"] or "") in policy.starts()]
    for results in own + others:
        if results.get("dense") and same_images(results, policy.first()):
            return results, results["dense"]["accuracy"]
    return None


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
