"""Calibration: shifts of all gates' thresholds bring the mean cost to a budget, or to each of several, if in reach."""

import copy
from contextlib import contextmanager

import torch
from torch.utils.data import Subset
from transformers.utils import logging

from ..measure.thresholds import shiftable
from ..model.budgets import MOST_BUDGETS, check_budget, shift_gates, shift_of
from ..model.cascade import check_rising
from ..model.configuration_dynvit import pair
from ..model.encoder import encode
from ..model.gate_random import draws_at_random
from .cascade_calibration import WORTH_A_WARNING, calibrate_cascade
from .shifts import Shifts
from .timed_calibration import calibrate_milliseconds


logger = logging.get_logger("hf_dynvit.training.calibration")
TOLERANCE = 0.002  # distance from the budget at which the search for a shift ends
# What a calibration sets of the configuration.
OF_BUDGETS = ("budget", "budget_shifts", "budget_confidences", "cascade")
SHUT = 1e4  # added to logits, it decides whatever else is in them


def calibration_images(dataset, most, seed):
    """`most` images of `dataset` at random, always the same: data are often sorted by class; none without a dataset."""
    if dataset is None or most < 1:
        return []
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:most].tolist())


def calibrate(model, batches, budget=None, budgets=None, milliseconds=None, **timing):
    """Find what to add to the logits of all learned gates, one number, so that the mean thresholded cost meets a budget.

    Sampling and thresholding, augmented and plain images, training and the end of it use differently much; this
    closes the gap with the order of the decisions kept.

    Args:
        model: a model with gates. A table of budgets that it has is dropped first (`model.drop_budgets`).
        batches: list of `pixel_values` (B, channels, height, width), the same for every step. No labels are used.
        budget: mean cost to meet, the model's own from then on; the gates' biases are shifted. Of a cascade each look is brought
            to its own budget, and a table says from which confidence images are done, at this budget and all others in reach.
        budgets: several in place of one: biases stay, and the configuration gets the table of (budget, shift), for
            `model.set_budget(0.55)`, `model(pixel_values, budget=0.5)` and `budget=` a tensor (B,). Budgets that the gates
            do not meet on these images are left out, and said. The model's own budget becomes the nearest in reach.
        milliseconds: mean time of an image on this device, in place of a cost; `timing`: further arguments of
            `calibrate_milliseconds` (timed_calibration.py), which says what is returned.

    Returns:
        The shift (of a cascade the confidence) at the model's budget, and the mean cost that it gives on the batches.

    Raises:
        ValueError: no learned gates and no cascade, no images, not one of the three aims, a cascade with another than one
            budget, or what is no budget.
    """
    aims = {"budget": budget, "budgets": budgets, "milliseconds": milliseconds}
    given = {name: aim for name, aim in aims.items() if aim is not None}
    if len(given) != 1 or (timing and milliseconds is None):
        raise ValueError(f"calibrate takes one of {list(aims)}, got {given | timing}")
    gates, cascade = model.learned_gates(), model.config.cascade is not None
    if not (gates or cascade) or not batches:
        raise ValueError(
            f"calibrate needs learned gates and images, got {len(gates)} gates and {len(batches)} batches"
        )
    if budget is not None:
        check_budget(budget)
    if cascade and budget is None:
        raise ValueError(
            f"a cascade is calibrated for one budget, and has a table of all others in reach: got {given}"
        )
    if budgets is not None:
        _check_several(budgets)
    was_training = model.training
    model.eval()
    try:
        with _kept_on_error(model):
            return _calibrated(model, batches, budget, budgets, milliseconds, timing)
    finally:
        model.train(was_training)


def _calibrated(model, batches, budget, budgets, milliseconds, timing):
    if milliseconds is not None:
        found = calibrate_milliseconds(model, batches, milliseconds, **timing)
        model.config.budget = min(1.0, found.cost)
        return found
    model.drop_budgets()
    if model.config.cascade is not None:
        return calibrate_cascade(model, batches, lambda *look: _to_look(model, batches, *look), budget)
    shifts = Shifts(model, batches)
    found = None if budgets is None else _to_several(model, shifts, budgets)
    return _to_one(model, shifts, model.config.budget if budget is None else budget) if found is None else found


@contextmanager
def _kept_on_error(model):
    """Thresholds and what the configuration says of budgets stay as they were if what runs in here fails."""
    config, biases = model.config, [gate.score.bias for gate in model.learned_gates()]
    before = {name: copy.deepcopy(getattr(config, name)) for name in OF_BUDGETS}
    values = [bias.detach().clone() for bias in biases]
    try:
        yield
    except BaseException:
        for name, value in before.items():
            setattr(config, name, value)
        with torch.no_grad():
            for bias, value in zip(biases, values, strict=True):
                bias.copy_(value)
        raise


def _to_one(model, shifts, budget):
    shift, cost = _nearest(shifts, budget)
    gates = model.learned_gates()
    shift_gates(gates, shift)
    model.config.budget = budget
    if any(gate.score.bias.dtype.itemsize < 4 for gate in gates):  # which rounds the shift
        cost = mean_cost(model, shifts.batches)
        if abs(cost - budget) > WORTH_A_WARNING:
            logger.warning(
                f"thresholds in 16 bits give a cost of {cost:.3f} at the budget {budget}: calibrate in float32"
            )
    return shift, cost


def _to_look(model, batches, look, budget):
    """The shift of a look of a cascade."""
    return _nearest(Shifts(model, batches, look=look), budget)[0]


def _nearest(shifts, budget):
    shift, cost = shifts.nearest(budget, TOLERANCE)
    if abs(cost - budget) > WORTH_A_WARNING:
        logger.warning(
            f"the budget is {budget}, and the nearest mean cost that the gates' thresholds give is {cost:.3f}: they "
            "decide alike for many images, so that the cost moves in steps"
        )
    return shift, cost


def _check_several(budgets):
    for budget in budgets:
        check_budget(budget)
    if not 1 <= len(set(budgets)) <= MOST_BUDGETS:
        raise ValueError(f"budgets must be 1 to {MOST_BUDGETS} different ones, got {len(set(budgets))}")


def _to_several(model, shifts, budgets):
    """Give the model a table of budgets; None if not one of them can be met."""
    config, table, missed = model.config, [], []
    for budget in sorted(set(budgets)):
        shift, cost = shifts.nearest(budget, TOLERANCE)
        if abs(cost - budget) > WORTH_A_WARNING or (table and shift <= table[-1][1]):
            missed.append(f"{budget} (nearest {cost:.3f})")
        else:
            table.append([float(budget), shift])
    if missed:
        logger.warning(
            f"left out of the table of budgets: {', '.join(missed)}; there the gates decide alike for many images, so that "
            "the cost moves in steps" + ("" if table else ": the model keeps the one budget that it has")
        )
    if not table:
        return None
    config.budget, config.budget_shifts = min(max(config.budget, table[0][0]), table[-1][0]), table
    shift = shift_of(config, 1)
    return shift, shifts.tried[shift] if shift in shifts.tried else shifts.mean(shift)


def mean_cost(model, batches):
    """Mean cost of batches of `pixel_values` as the thresholds are."""
    return Shifts(model, batches).mean(None)


# ---------------------------------------------------------------------------------------------- reach


def check_budgets(model, budgets):
    """Refuse budgets that no thresholds can meet, of a mask that leaves too little, or of gates on too few layers.

    Args:
        model: a model with gates; without learned gates, or with random ones beside them, nothing is refused.
        budgets: mean costs to aim at; of a cascade for all looks together, whose own are looked at, too.

    Returns:
        The greatest mean cost to start from, at most 1; of a cascade a list, one for each look.

    Raises:
        ValueError: a budget out of reach; it names the reach.
    """
    learned, looks = bool(model.learned_gates()) and not draws_at_random(model), model.config.cascade
    if looks is None:
        return _check_within(model, budgets) if learned else 1.0
    costs = [look["budget"] if learned else cost_range(model, index)[1] for index, look in enumerate(looks)]
    check_rising(costs)
    for budget in budgets:
        if not costs[0] <= budget <= sum(costs):
            raise ValueError(
                f"a budget of {budget} is out of reach of this cascade: its first look costs {costs[0]:.3f}, all looks "
                f"{sum(costs):.3f}"
            )
    return [_check_within(model, [cost], look) if learned else 1.0 for look, cost in enumerate(costs)]


def _check_within(model, budgets, look=None):
    least, most = cost_range(model, look)
    for budget in budgets:
        if not least - TOLERANCE <= budget <= most + TOLERANCE:
            where = "its gates" if model.config.layer_mask is None else "its gates under its layer_mask"
            raise ValueError(
                f"a budget of {budget} is out of reach: {where} can bring the cost of this model to between {least:.3f} "
                f"and {most:.3f}"
            )
    return min(1.0, most)


@torch.no_grad()
def cost_range(model, look=None):
    """(least, most): the cost of an image with all learned gates closed, and with all open, the gates' own included.

    Args:
        look: of a cascade; None: the last.
    """
    size, parameter = pair(model.config.image_size), next(model.parameters())
    image = torch.zeros(1, model.config.num_channels, *size, device=parameter.device, dtype=parameter.dtype)
    costs = []
    with shiftable(model) as shift:
        for amount in (-SHUT, SHUT):
            shift(amount)
            costs.append(encode(model, image, gating="threshold", look=look)[1].item())
    return tuple(costs)


def steady_range(model, look=None):
    """`cost_range`, without limits where gates draw at random, which would be drawn from for it."""
    return (-float("inf"), float("inf")) if draws_at_random(model) else cost_range(model, look)
