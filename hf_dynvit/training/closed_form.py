"""`fit_gates`: all that gates learn without training, in the order in which one needs the other."""

from ..model.budgets import shift_gates
from ..model.bypass import bypass_of
from ..model.gate_kinds import token_gates, unit_gates
from .bypass import fit_bypass
from .calibration import calibrate
from .harm import fit_harm
from .importance import fit_importance
from .sharing import OPEN, SHARES, share_budget


def fit_gates(model, batches, budget, shares=SHARES):
    """Bring a fresh model with gates of several kinds to a mean cost, on unlabelled images, without any training.

    Bypasses are fitted to what they stand for; scores of tokens learn which tokens the prediction depends on; those of heads
    and sub-layers learn, beside that, what skipping each costs it; last, how much of the budget each kind saves is tried.

    Args:
        model: of one look, with learned gates. batches: list of `pixel_values` (B, channels, height, width).
        budget: mean cost. shares: to try, of `share_budget`.

    Returns:
        What `share_budget` tried, the best first; [] without gates of heads and sub-layers.

    Raises:
        ValueError: as `calibrate`, `fit_harm` and `share_budget`.
    """
    units, tokens = list(unit_gates(model).values()), token_gates(model)
    if any(bypass_of(gates) for gates in model.gates):
        fit_bypass(model, [{"pixel_values": batch} for batch in batches])
    if tokens:
        fit_importance(model, batches)
    return fit_units(model, batches, budget, shares) if units else calibrate(model, batches, budget) and []


def fit_units(model, batches, budget, shares=SHARES):
    """The part of `fit_gates` for heads and sub-layers, beside gates of tokens that have an order; returns as it does."""
    units = list(unit_gates(model).values())
    shift_gates(units, OPEN)
    if len(model.learned_gates()) > len(units):
        calibrate(model, batches, budget)
    fit_harm(model, batches)
    return share_budget(model, batches, budget, shares)
