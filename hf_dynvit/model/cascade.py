"""A cascade: every image gets a cheap look, and only those that it leaves unsure get another one, of more pixels or tokens.

Whether an image needs another look is said by the probability of its most likely class, the weighted mean over the looks
so far (IDK cascades, Wang et al., 2017, and DVT, Wang et al., 2021, which gives its second model more tokens, take the last
look alone: a weight of it that outgrows the others). All looks are of the same model; each has a size of images and thresholds
of its own. From which confidence an image is done follows from the budget, by a table that calibration measures
(training/cascade_calibration.py), so that a forward can be asked for any mean cost between the first look's and all looks'.

Letters: B images, C classes.
"""

import math
from functools import partial
from typing import NamedTuple

import torch

from .budgets import WIDEST_SHIFT, check_budget, check_reach, check_table, looked_up, shift_of


MOST_LOOKS = 8
MOST_WEIGHT = 1e5  # of a look: room for eight of which each counts four times as much as the one before
SURE = 1.001  # a confidence that no image has, whatever the rounding
REFUSED = ("decisions", "output_attentions", "output_hidden_states", "patches")  # they mean nothing of several looks


def check_looks(config):
    """Raise ValueError for a configuration whose cascade is none: entries, order, and what does not go with it."""
    looks = config.cascade
    if not isinstance(looks, (list, tuple)) or not 2 <= len(looks) <= MOST_LOOKS:
        raise ValueError(f"cascade must be a list of 2 to {MOST_LOOKS} looks, got {looks!r}")
    for look in looks:
        if not isinstance(look, dict) or not {"budget"} <= set(look) <= {"budget", "resolution", "shift", "weight"}:
            raise ValueError(
                f'looks of a cascade are dicts of "budget", and maybe "resolution", "shift" and "weight", got {look!r}'
            )
        check_budget(look["budget"])
        shift, weight = look.get("shift", 0.0), look.get("weight", 1.0)
        if not _is_number(weight) or not 1 / MOST_WEIGHT <= weight <= MOST_WEIGHT:
            raise ValueError(f"weights of a cascade must be in [{1 / MOST_WEIGHT:g}, {MOST_WEIGHT:g}], got {weight!r}")
        if not _is_number(shift) or not abs(shift) <= WIDEST_SHIFT:
            raise ValueError(f"shifts of a cascade must be in [-{WIDEST_SHIFT}, {WIDEST_SHIFT}], got {shift!r}")
    check_rising([look["budget"] for look in looks])
    given = [name for name in ("resolution", "budget_shifts", "layer_mask") if getattr(config, name) is not None]
    if given:
        raise ValueError(f"a cascade has sizes and thresholds for each look: {given} cannot be given beside it")
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise ValueError(
            "a cascade needs one label of several for each image, by whose probability it is sure: got problem_type "
            f"{config.problem_type!r} and {config.num_labels} labels"
        )
    if config.budget_confidences is not None:
        check_table(config.budget_confidences, "budget_confidences", "confidence", 0.0, SURE)
        check_reach(config.budget_confidences, config.budget)


def _is_number(value):
    return isinstance(value, (int, float)) and type(value) is not bool


def check_each_look(config):
    """Raise ValueError for a merge gate whose `merged` lists numbers for other looks than a configuration has."""
    looks = len(config.cascade or [])
    for entry in config.gates or []:
        merged = entry.get("merged") if entry["gate"] == "merge" else None
        if isinstance(merged, list) and (len(merged) != looks or not looks):
            raise ValueError(
                f"merged {merged} of a gate has a number for each look of a cascade: it has {looks} looks"
            )


def in_look(merged, look):
    """How many tokens a gate merges in a look, of its `merged`: a list has a number for each."""
    return merged[look] if isinstance(merged, list) else merged


def check_rising(budgets):
    """Raise ValueError for budgets of looks, or their costs, of which an earlier one is more than a later one."""
    if sorted(budgets) != budgets:
        raise ValueError(f"the looks of a cascade must begin with the cheapest, got budgets {budgets}")


def look_shifts(config):
    """What each look adds to the logits of all learned gates."""
    return [look.get("shift", 0.0) for look in config.cascade]


def set_look_shifts(config, shifts):
    """Give each look of a cascade its shift."""
    config.cascade = [{**look, "shift": float(shift)} for look, shift in zip(config.cascade, shifts, strict=True)]


def look_weights(config):
    """How much each look's probabilities count in the mean: floats."""
    return [float(look.get("weight", 1.0)) for look in config.cascade]


def check_single_label(labels):
    """Raise ValueError for labels that are not one class for each image."""
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
        raise ValueError(
            f"a cascade needs one class for each image, int64 (B,), as labels; got {labels.dtype} {tuple(labels.shape)}"
        )


def view(config, batch, look=None, budget=None):
    """(resolution, shift) at which a forward of `batch` images runs: of a look, or the model's own.

    Args:
        look: counted from 0, of a model with a cascade; None: the last. budget: as in `encode`.

    Raises:
        ValueError: a look that there is not, or a budget of one look.
    """
    looks = config.cascade
    if looks is None:
        if look is not None:
            raise ValueError(f"look={look!r} needs a model with a cascade, and this one has none")
        return config.resolution, shift_of(config, batch, budget)
    if look is not None and not (type(look) is int and 0 <= look < len(looks)):
        raise ValueError(f"look must be in 0..{len(looks) - 1}, got {look!r}")
    if budget is not None:
        raise ValueError(f"a budget is for all looks of a cascade together, not for one: got {budget!r}")
    chosen = looks[-1 if look is None else look]
    return chosen.get("resolution"), chosen.get("shift", 0.0)


def counted(logits, weight):
    """The logarithm of a look's probabilities times its weight, float32 (B, C), of its logits (B, C)."""
    return logits.float().log_softmax(-1) + math.log(weight)


def mean_probability(total, weight):
    """The mean over looks, of the logarithm of the sum of what `counted` gives (B,); weight: float32 (B,) or a number, the sum of
    theirs."""
    return (total - torch.as_tensor(weight, dtype=total.dtype, device=total.device).log()).exp()


class Seen(NamedTuple):
    """What all looks together give.

    Attributes:
        logits: (B, C), the logarithm of the weighted mean probability over the looks that an image has taken.
        cost: (B,), of all of them. looks: (B,) int64, their number.
    """

    logits: torch.Tensor
    cost: torch.Tensor
    looks: torch.Tensor


def in_looks(model, pixel_values, budget=None, look=None, **options):
    """`Seen` of images (B, channels, height, width): in the packed layout, only unsure images are looked at again.

    Args:
        model: a classifier with a cascade. budget: a number or (B,), as in `encode`. look: None, all of them are meant.
        options: of `encode`.

    Raises:
        ValueError: a budget out of reach, or an option that is for one look.
    """
    given = [name for name in REFUSED if options.get(name) is not None and options[name] is not False]
    wrong = given + [name for name in REFUSED if name not in options and getattr(model.config, name, False)]
    exploration = options.get("exploration")
    wrong += ["exploration with a shift"] if exploration is not None and exploration.shift is not None else []
    if wrong:
        raise ValueError(
            f"{wrong} are for one look of a cascade: say which, look=0 to {len(model.config.cascade) - 1}"
        )
    batch = pixel_values.shape[0]
    confidence = looked_up(model.config.budget_confidences, model.config.budget, batch, budget)
    confidence = torch.as_tensor(SURE if confidence is None else confidence, device=pixel_values.device).expand(batch)
    packed = model.layout == "packed"
    unsure = torch.ones(batch, dtype=torch.bool, device=pixel_values.device)
    # What wraps an instance's forward is around this one already, and must not be entered twice: an `autocast` of accelerate's
    # that is stays on for the rest of the process.
    one_look = partial(type(model).forward, model) if isinstance(model, torch.nn.Module) else model
    total, cost, looks, weights = None, 0.0, 0, 0.0
    for index, weight in enumerate(look_weights(model.config)):
        there = unsure.nonzero().squeeze(1) if packed and index else None
        if there is not None and len(there) == 0:
            break
        seen = pixel_values if there is None else pixel_values[there]
        out = one_look(seen, look=index, return_dict=True, **options)
        found, spent = counted(out.logits, weight), out.cost
        if there is not None:
            found = found.new_full((batch, found.shape[1]), -torch.inf).index_copy(0, there, found)
            spent = spent.new_zeros(batch).index_copy(0, there, spent)
        elif index:
            found, spent = found.masked_fill(~unsure.unsqueeze(1), -torch.inf), spent * unsure
        total = found if total is None else torch.logaddexp(total, found)
        cost, looks, weights = cost + spent, looks + unsure.long(), weights + weight * unsure
        # What is not a number is unsure: it shows in the logits of all looks.
        unsure = unsure & ~(mean_probability(total.amax(-1), weights) >= confidence)
    return Seen((total - weights.log().unsqueeze(1)).to(out.logits.dtype), cost, looks)
