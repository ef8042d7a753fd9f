"""`share_budget`: how much of a budget heads and sub-layers save, and how much the gates of tokens, by trial.

Letters: B images.
"""

import math
from typing import NamedTuple

import torch
from transformers.utils import logging

from ..measure.thresholds import biases_of, set_biases
from ..model.budgets import check_budget, shift_gates
from .cascade_calibration import WORTH_A_WARNING
from .harm import check_units
from .resolution import trial
from .shifts import Shifts


logger = logging.get_logger("hf_dynvit.training.calibration")
SHARES = (0.0, 0.03, 0.06, 0.12)  # of the computation that gates of tokens leave
OPEN = 64.0  # added to a logit, no shift of a calibration closes the gate any more
NEAR = 0.002  # distance from a cost at which the search for a shift ends


class Share(NamedTuple):
    """What one division of the budget gives."""

    share: float  # of what learned gates of tokens leave, saved by gates of heads and sub-layers; of all, without any
    cost: float  # mean over the images
    distance: float  # mean KL divergence from the dense model's predictions, nats


def share_budget(model, batches, budget, shares=SHARES):
    """Set the thresholds of all gates to the division of the budget nearest to the dense model's predictions.

    With the gates of tokens as they are, those of heads and sub-layers skip as much as saves a share; then the gates of
    tokens meet the budget. Without learned gates of tokens the others meet the budget alone, whatever the shares. Divisions
    that miss the budget come last, those first that miss it least.

    Args:
        model: a model whose gates have an order (`fit_importance`, `fit_harm`); the thresholds of tokens meet the budget
            with all else open, as `fit_harm` was given it.
        batches: list of `pixel_values` (B, channels, height, width); no labels are used.
        budget: mean cost. shares: to try, in [0, 1); with 0 all heads and sub-layers stay open, whatever is calibrated later.

    Returns:
        A list of `Share`, the best first.

    Raises:
        ValueError: as `check_units`, shares or a budget out of range, or images whose predictions are not finite.
    """
    units = list(check_units(model).values())
    check_shares(shares)
    check_budget(budget)
    model.drop_budgets()
    was_training = model.training
    model.eval()
    try:
        return _best_division(model, batches, budget, shares, units)
    finally:
        model.train(was_training)


def _best_division(model, batches, budget, shares, units):
    tokens = [gate for gate in model.learned_gates() if not any(gate is unit for unit in units)]
    start, gates = biases_of(units + tokens), units + tokens
    with torch.no_grad():
        wanted = [model(batch, gating="open").logits for batch in batches]
    tried = {}
    for share in shares if tokens else (1 - budget,):
        set_biases(gates, start)
        found = _divide(model, batches, budget, share, units, tokens)
        reached = trial(None, model, wanted, batches)
        tried[Share(share, reached.cost, reached.distance)] = found
    if not any(math.isfinite(one.distance) for one in tried):
        set_biases(gates, start)
        raise ValueError(f"no division of the budget gives finite predictions on these images: {list(tried)}")
    best = sorted(tried, key=lambda one: (not math.isfinite(one.distance), _missed(one, budget), one.distance))
    set_biases(gates, tried[best[0]])
    model.config.budget = budget
    if _missed(best[0], budget):
        logger.warning(
            f"the budget is {budget}, and the nearest mean cost that any division of it gives is {best[0].cost:.3f}"
        )
    return best


def _missed(one, budget):
    """By how much a `Share` misses the budget, where that is worth a warning; else 0."""
    off = abs(one.cost - budget)
    return off if off > WORTH_A_WARNING else 0.0


def check_shares(shares):
    """ValueError for none, or one out of range."""
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares of heads and sub-layers must be some of [0, 1), got {shares}")


def _divide(model, batches, budget, share, units, tokens):
    """Shift units, then tokens; returns all biases."""
    if share == 0:
        shift_gates(units, OPEN)
    else:
        _meet(model, batches, units, (budget if tokens else 1.0) * (1 - share))
    if tokens:
        _meet(model, batches, tokens, budget)
    return biases_of(units + tokens)


def _meet(model, batches, gates, cost):
    shift_gates(gates, _Some(model, batches, gates).nearest(cost, NEAR)[0])


class _Some(Shifts):
    """Shifts of some of the gates."""

    def __init__(self, model, batches, gates):
        super().__init__(model, batches)
        self.gates, self.start = gates, biases_of(gates)

    def mean(self, shift):
        shift_gates(self.gates, shift)
        try:
            return super().mean(None)
        finally:
            set_biases(self.gates, self.start)
