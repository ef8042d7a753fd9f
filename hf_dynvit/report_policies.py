"""Which results speak of one layer-skipping policy: its trainings and evaluations, and the rivals on the same images."""

from typing import NamedTuple

import yaml

from .report_seeds import mean
from .report_tables import short


BLOCK_PRESETS = ("layerskip", "layerskip-dynavit")
SAME_COST = 0.02  # a static mask may cost this much more than the policy that it is compared with
WITHOUT_MASK = 0.999  # what has no gates and costs less has a mask
SAME_TRAINING = 0.01  # relative difference in images seen


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


def gates_of(results):
    """A list of gates, None without any, or the name of a preset where the file says no more."""
    if "gates" in results:
        return results["gates"]
    gates = yaml.safe_load(results["settings"]["model"]["gates"])
    return None if gates == "none" else gates


def policy_name(results):
    """What a policy of layer skipping decides, and inside which mask; None for anything else."""
    gates = gates_of(results)
    if isinstance(gates, str):
        return "blocks" if gates in BLOCK_PRESETS else None
    if not gates or any(gate["gate"] != "block" for gate in gates):
        return None
    apart = any(gate.get("granularity") == "sublayer" for gate in gates)
    name = "attention and MLP apart" if apart else "blocks"
    name += ", decided up front" if any(gate.get("upfront") for gate in gates) else ""
    return name + masked(results)


def masked(results):
    """What a mask leaves, as an addition to a name; files of earlier versions do not say."""
    mask = results.get("layer_mask")
    return f", mask of {sum(map(sum, mask))} / {2 * len(mask)} sub-layers" if mask else ""


def start(runs):
    """The checkpoint that training started from."""
    return runs[0]["settings"]["model"]["model_name_or_path"]


def same_images(one, other):
    return all(one[name] == other[name] for name in ("dataset", "split", "images"))


def trained_alike(runs, trainings):
    """(dense, random): of all trainings those from the same checkpoint, on as many images, without gates or with random
    ones of the same budget."""
    first, dense, random = runs[0], [], []
    for others in trainings:
        other = others[0]
        if other.get("agent"):  # which gave it fewer patches to train on
            continue
        more = abs(other["images_seen"] - first["images_seen"]) / max(1, first["images_seen"])
        if start(others) != start(runs) or not same_images(first, other) or more > SAME_TRAINING:
            continue
        gates, model = gates_of(other), other["settings"]["model"]
        if gates is None:
            dense.append(others)
        elif isinstance(gates, list) and all(
            gate["gate"] == "random" and gate.get("unit") in ("block", "sublayer") for gate in gates
        ):
            random += [others] if model["budget"] == first["settings"]["model"]["budget"] else []
    return dense, random


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
