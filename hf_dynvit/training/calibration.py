"""Calibration: one shift of all gates' thresholds brings the mean cost to the budget, if that is in reach."""

import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..measure.thresholds import shiftable
from ..model.configuration_dynvit import pair
from ..model.encoder import encode
from ..model.gate_random import RandomGate


logger = logging.get_logger("hf_dynvit.training.calibration")
TOLERANCE = 0.002  # distance from the budget at which the search for a shift ends
WORTH_A_WARNING = 0.02  # a cost that far from the budget is another one
WIDEST = 16.0  # no shift of thresholds goes further: gates that are still open or closed there decide alike for all
STEPS = 12  # of bisection
SHUT = 1e4  # added to logits, it decides whatever else is in them


def calibration_images(dataset, most, seed):
    """`most` images of `dataset` at random, always the same: data are often sorted by class; none without a dataset."""
    if dataset is None or most < 1:
        return []
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:most].tolist())


def calibrate(model, batches, budget):
    """Add one number to the logits of all learned gates, so that the mean thresholded cost meets the budget.

    Sampling and thresholding, augmented and plain images, training and the end of it use differently much; this
    closes the gap with the order of the decisions kept.

    Args:
        model: a model with gates; its gates' biases are shifted.
        batches: list of `pixel_values` (B, channels, height, width), the same for every step. No labels are used.
        budget: mean cost to meet.

    Returns:
        The shift, and the mean cost that it gives on the batches.
    """
    gates = model.learned_gates()
    if not gates or not batches:
        raise ValueError(
            f"calibrate needs learned gates and images, got {len(gates)} gates and {len(batches)} batches"
        )
    was_training = model.training
    model.eval()
    low, high, applied = -WIDEST, WIDEST, 0.0
    best = (float("inf"), 0.0, 0.0)
    for step in tqdm(range(STEPS), desc="calibrating", leave=False):
        shift = 0.0 if step == 0 else (low + high) / 2
        shift_gates(gates, shift - applied)
        applied = shift
        cost = mean_cost(model, batches)
        best = min(best, (abs(cost - budget), shift, cost))
        if best[0] <= TOLERANCE:
            break
        low, high = (low, shift) if cost > budget else (shift, high)
    shift_gates(gates, best[1] - applied)
    model.train(was_training)
    if best[0] > WORTH_A_WARNING:
        logger.warning(
            f"the budget is {budget}, and the nearest mean cost that the gates' thresholds give is {best[2]:.3f}: they "
            "decide alike for many images, so that the cost moves in steps"
        )
    return best[1], best[2]


@torch.no_grad()
def shift_gates(gates, amount):
    """Add one number to the logits of all the gates."""
    for gate in gates:
        gate.score.bias += amount


@torch.no_grad()
def mean_cost(model, batches):
    """Mean cost of batches of `pixel_values` as the thresholds are."""
    return torch.cat([model(pixel_values, gating="threshold").cost for pixel_values in batches]).mean().item()


# ---------------------------------------------------------------------------------------------- reach


def check_budgets(model, budgets):
    """Refuse budgets that no thresholds can meet, of a mask that leaves too little, or of gates on too few layers.

    Args:
        model: a model with gates; without learned gates, or with random ones beside them, nothing is refused.
        budgets: mean costs to aim at.

    Returns:
        The greatest mean cost to start from, at most 1.

    Raises:
        ValueError: a budget out of reach; it names the reach.
    """
    if not model.learned_gates() or _draws(model):
        return 1.0
    least, most = cost_range(model)
    for budget in budgets:
        if not least - TOLERANCE <= budget <= most + TOLERANCE:
            where = "its gates" if model.config.layer_mask is None else "its gates under its layer_mask"
            raise ValueError(
                f"a budget of {budget} is out of reach: {where} can bring the cost of this model to between {least:.3f} "
                f"and {most:.3f}"
            )
    return min(1.0, most)


@torch.no_grad()
def cost_range(model):
    """(least, most): the cost of an image with all learned gates closed, and with all open, the gates' own included."""
    size, parameter = pair(model.config.image_size), next(model.parameters())
    image = torch.zeros(1, model.config.num_channels, *size, device=parameter.device, dtype=parameter.dtype)
    costs = []
    with shiftable(model) as shift:
        for amount in (-SHUT, SHUT):
            shift(amount)
            costs.append(encode(model, image, gating="threshold")[1].item())
    return tuple(costs)


def steady_range(model):
    """`cost_range`, without limits where gates draw at random, which would be drawn from for it."""
    return (-float("inf"), float("inf")) if _draws(model) else cost_range(model)


def _draws(model):
    return any(isinstance(module, RandomGate) for module in model.modules())
