"""`fit_gates`: all that gates learn without training, in the order in which one needs the other."""

from ..measure.thresholds import biases_of, set_biases
from ..model.budgets import check_budget, shift_gates
from ..model.bypass import bypass_of
from ..objectives.gate_kinds import token_gates, unit_gates
from .bypass import fit_bypass
from .calibration import calibrate
from .harm import check_images, check_precision, check_units, fit_harm
from .importance import fit_importance
from .sharing import OPEN, SHARES, check_shares, share_budget


def fit_gates(model, batches, budget, shares=SHARES, per_image=True):
    """Bring a fresh model with gates of several kinds to a mean cost, on unlabelled images, without any training.

    Bypasses are fitted to what they stand for; scores of tokens learn which tokens the prediction depends on; those of heads
    and sub-layers learn, beside that, what skipping each costs it; last, how much of the budget each kind saves is tried.

    Args:
        model: of one look, with learned gates. Bypasses that say something already are left as they are.
        batches: list of `pixel_values` (B, channels, height, width). budget: mean cost.
        shares: to try, of `share_budget`. per_image: whether heads and sub-layers are decided per image, as in `fit_harm`.

    Returns:
        What `share_budget` tried, the best first; [] without gates of heads and sub-layers.

    Raises:
        ValueError: as `calibrate`, `fit_harm` and `share_budget`, before anything is fitted.
    """
    units = unit_gates(model)
    check_budget(budget)
    if not model.learned_gates() or not batches:
        raise ValueError(
            f"fit_gates needs learned gates and images, got gates {model.config.gates}, {len(batches)} batches"
        )
    if units:
        _check(model, batches, budget, shares)
    bypasses = [bypass for gates in model.gates for bypass in bypass_of(gates)]
    if bypasses and all(bypass.adds_nothing() for bypass in bypasses):
        fit_bypass(model, [{"pixel_values": batch} for batch in batches])
    if token_gates(model):
        fit_importance(model, batches)
    if units:
        return fit_units(model, batches, budget, shares, per_image)
    calibrate(model, batches, budget)
    return []


def fit_units(model, batches, budget, shares=SHARES, per_image=True):
    """The part of `fit_gates` for heads and sub-layers, beside gates of tokens that have an order; returns as it does."""
    _check(model, batches, budget, shares)
    units = list(unit_gates(model).values())
    before = biases_of(units)
    try:
        shift_gates(units, OPEN)
        if len(model.learned_gates()) > len(units):
            calibrate(model, batches, budget)
        fit_harm(model, batches, per_image=per_image)
    except BaseException:
        set_biases(units, before)
        raise
    return share_budget(model, batches, budget, shares)


def _check(model, batches, budget, shares):
    check_units(model)
    check_precision(model)
    check_shares(shares)
    check_budget(budget)
    check_images(batches)
