"""Which results belong together: runs that differ by their seed alone, and the rivals of a model on the same images."""

import json
import statistics
from typing import NamedTuple

from pandas import DataFrame

from .names import has_gates, masked, seen, short, units


# What a seed changes in the settings besides itself, and what says nothing about the training.
FREE_SETTINGS = "seed data_seed output_dir logging_dir run_name hub_model_id resume_from_checkpoint".split()
SAME_FACTS = "split_files images device dtype threads batch_size processes versions commit dataset split".split()
SAME_COST = 0.025  # a static mask may cost this much more than the policy that it is compared with
SAME_TRAINING = 0.01  # relative difference in images seen
# Options that two trainings by the same recipe share; how gates are taught, the teacher included, is theirs alone.
SAME_IMAGES = ("dataset", "split", "split_files", "images", "crop_pct")
SAME_OPTIONS = ("learning_rate", "lr_scheduler_type", "weight_decay")


def by_seed(trainings):
    """`Training` objects -> lists of those that differ by seed alone, by rising seed; in order of first appearance.

    Runs with the same seed are never summed up: the second one begins a list of its own.
    """
    trainings = list(trainings)
    if not trainings:
        return []
    frame = DataFrame({"same": map(_identity, trainings), "seed": [run.seed for run in trainings]})
    frame["again"] = frame.groupby(["same", "seed"], dropna=False).cumcount()
    groups = frame.groupby(["same", "again"], sort=False)
    return [[trainings[index] for index in group.sort_values("seed").index] for _, group in groups]


def _identity(run):
    training = {name: value for name, value in run.settings["training"].items() if name not in FREE_SETTINGS}
    facts = [getattr(run, name) for name in SAME_FACTS]
    return json.dumps([facts, {**run.settings, "training": training}], sort_keys=True)


def mean(runs, name):
    """Mean of a number over runs."""
    return statistics.mean(getattr(run, name) for run in runs)


def percent(runs, name="accuracy"):
    """A share in per cent: "52.80"; of several runs "52.80 ± 0.31", the sample standard deviation."""
    text = f"{100 * mean(runs, name):.2f}"
    if len(runs) == 1:
        return text
    return f"{text} ± {100 * statistics.stdev(getattr(run, name) for run in runs):.2f}"


def counted(runs):
    """ " (3 seeds)", where there are several."""
    return f" ({len(runs)} seeds)" if len(runs) > 1 else ""


class Policy(NamedTuple):
    """What was measured of one kind of layer-skipping policy at one budget.

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
        known = [run.option("output_dir") for runs in self.trainings for run in runs]
        return short(path) in {short(one) for one in known + [found.model for found in self.evaluations] if one}

    def starts(self):
        """The checkpoints it was trained from, or is compared with."""
        found = [start(runs[0]) for runs in self.trainings] + [one.dense_model for one in self.evaluations]
        return {short(path) for path in found if path}


def policies(trainings, evaluations):
    """`Policy` objects; trainings as `by_seed` gives them."""
    found = {}

    def policy_of(results, budget):
        key = results.dataset, policy_name(results), budget
        return found.setdefault(key, Policy(*key, [], []))

    for runs in trainings:
        policy_of(runs[0], budget(runs[0])).trainings.append(runs)
    for results in evaluations:
        policy_of(results, results.budget).evaluations.append(results)
    return [policy for policy in found.values() if policy.name is not None]


def is_mask(results):
    """Whether the same layers run for every image: a mask, and no gates but those that hold what is added in place of a layer."""
    return bool(results.layer_mask) and not any(results.learned.values()) and not has_gates(results, "random")


def policy_name(results):
    """What a policy of layer skipping decides, by which preset and inside which mask; None for anything else."""
    if not has_gates(results, "block") or is_mask(results):
        return None
    apart = any(gate.get("granularity") == "sublayer" for gate in results.gates)
    name = "attention and MLP apart" if apart else "blocks"
    name += ", decided up front" if any(gate.get("upfront") for gate in results.gates) else ""
    name += f" ({results.preset})" if results.preset else ""
    return name + seen(results) + masked(results)


def start(training):
    """The checkpoint that a training started from."""
    return training.settings["model"]["model_name_or_path"]


def budget(training):
    """The mean cost that a training aimed at."""
    return training.settings["model"]["budget"]


def same_images(one, other):
    return all(getattr(one, name) == getattr(other, name) for name in SAME_IMAGES)


def trained_alike(runs, trainings):
    """(dense, random): of all trainings those by the same recipe (`same_recipe`), without gates or mask, or with
    random gates of the same budget that decide on the same kind of units, blocks apart from patches."""
    first = runs[0]
    alike = [others for others in trainings if same_recipe(first, others[0])]
    dense = [others for others in alike if others[0].is_dense()]
    random = [
        others
        for others in alike
        if has_gates(others[0], "random") and ("patch" in units(others[0])) == ("patch" in units(first))
        if budget(others[0]) == budget(first) and _seen(others[0]) == _seen(first)
    ]
    return dense, random


def _seen(results):
    """Size of images, of a cascade that, cost and weight of each look, and what is left out of the last layer."""
    looks = results.cascade and [
        (look.get("resolution"), look["budget"], look.get("weight", 1.0)) for look in results.cascade
    ]
    return results.resolution, looks, results.last_layer


def same_recipe(one, other):
    """Whether two trainings began at the same checkpoint, saw as many images, and were reported on the same ones.

    Not one with an agent, which gave it fewer patches to train on.
    """
    more = abs(other.images_seen - one.images_seen) / max(1, one.images_seen)
    same = all(one.option(name) == other.option(name) for name in SAME_OPTIONS)
    same = same and one.settings["data"].get("min_crop_area") == other.settings["data"].get("min_crop_area")
    return same and same_images(one, other) and more <= SAME_TRAINING and not other.agent and same_start(one, other)


def same_start(one, other):
    """Whether two trainings began at the same weights; by the name of the checkpoint where a file does not know them."""
    known = one.start_weights, other.start_weights
    return known[0] == known[1] if all(known) else start(one) == start(other)


def best_mask(policy, evaluations):
    """The most accurate evaluation of a static mask on the same images at the cost of the policy, or None."""
    most = policy.cost() + SAME_COST
    masks = [
        results
        for results in evaluations
        if is_mask(results) and _seen(results) == _seen(policy.first())
        if results.cost <= most
        if same_images(results, policy.first())
    ]
    return max(masks, key=lambda results: results.accuracy, default=None)


def dense_checkpoint(policy, evaluations):
    """(results that hold it, accuracy) of the dense checkpoint on the same images, or None."""
    own = [run for runs in policy.trainings for run in runs] + policy.evaluations
    for results in own + [other for other in evaluations if short(other.dense_model or "") in policy.starts()]:
        if results.dense and same_images(results, policy.first()):
            return results, results.dense.accuracy
    return None
