"""Each look of a cascade on its own: what all images would get and cost after it, and what chance would make of as many.

Letters: L looks, B images.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..model.budgets import looked_up
from ..model.cascade import SURE, counted, look_weights, mean_probability


BUDGETS = (0.8, 0.65, 0.5, 0.4, 0.3)  # at which a cascade is looked at, those that its table reaches


class EachLook(NamedTuple):
    """After each look, by the weighted mean probability of all looks so far; tensors (L, B) on CPU.

    Attributes:
        sure: probability of the most likely class. read: that class. spent: cost of the look alone.
    """

    sure: torch.Tensor
    read: torch.Tensor
    spent: torch.Tensor


@dataclass(kw_only=True)
class AtBudget:
    """A cascade at one of its budgets: what it reaches, and the expected accuracy and cost of as many looks at random, which may
    cost less, for the images that leave a model unsure have more to look at."""

    budget: float
    accuracy: float
    cost: float
    at_random: float
    cost_at_random: float


@dataclass(kw_only=True)
class Looks:
    """A cascade beside the same number of looks drawn at random.

    Attributes:
        accuracy, cost: of all images after one look, after two, ...; the costs add up.
        shares: of the images that take one look, two, ... at the model's budget.
        at_random: expected accuracy if these shares of the images, whichever, took one look, two, ...
        at: the same at other budgets; the model is the same, only it changes from which confidence an image is done.
    """

    accuracy: list[float]
    cost: list[float]
    shares: list[float]
    at_random: float
    at: list[AtBudget] = field(default_factory=list)


@torch.no_grad()
def each_look(model, batches):
    """`EachLook` of a cascade in evaluation mode, on a list of `pixel_values` (B, channels, height, width)."""
    found = [_after_each(model, pixel_values) for pixel_values in batches]
    return EachLook(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))


def _after_each(model, pixel_values):
    """The probabilities are float32, as in the forward: where it rounds two to the same, no threshold can lie between them."""
    total, weights, parts = None, 0.0, []
    for look, weight in enumerate(look_weights(model.config)):
        out = model(pixel_values, look=look)
        found, weights = counted(out.logits, weight), weights + weight
        total = found if total is None else torch.logaddexp(total, found)
        most, read = total.max(-1)
        parts.append((mean_probability(most, weights).double(), read, out.cost.double()))
    return EachLook(*(torch.stack(part).cpu() for part in zip(*parts, strict=True)))


@torch.no_grad()
def measure_looks(model, loader, budgets=BUDGETS):
    """`Looks` of a cascade on the images of a loader (dicts of `pixel_values` and `labels`), at those budgets that it reaches."""
    parts, labels = [], []
    for batch in tqdm(loader, desc="each look alone", unit="batch"):
        parts.append(_after_each(model, batch["pixel_values"].to(model.device, model.dtype)))
        labels.append(batch["labels"])
    each = EachLook(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))
    right, config = (each.read == torch.cat(labels)).double(), model.config
    table = config.budget_confidences
    reached = [one for one in budgets if table and table[0][0] <= one <= table[-1][0]]
    shares = _shares(_taken(each, _confidence(config, None)), len(right))
    accuracy = right.mean(1)
    return Looks(
        accuracy=accuracy.tolist(),
        cost=each.spent.mean(1).cumsum(0).tolist(),
        shares=shares.tolist(),
        at_random=(shares @ accuracy).item(),
        at=[_at(each, right, budget, _confidence(config, budget)) for budget in reached],
    )


def _confidence(config, budget):
    found = looked_up(config.budget_confidences, config.budget, 1, budget)
    return SURE if found is None else found


def _taken(each, confidence):
    """int64 (B,): how many looks each image takes, as in `in_looks`."""
    return 1 + (~(each.sure[:-1] >= confidence)).long().cumprod(0).sum(0)


def _shares(taken, looks):
    """(L,): the share of the images that take one look, two, ..."""
    return taken.bincount(minlength=looks + 1)[1:].double() / len(taken)


def _at(each, right, budget, confidence):
    """`AtBudget`; right: (L, B), whether an image is right after one look, two, ..."""
    taken = _taken(each, confidence)
    shares, last = _shares(taken, len(right)), taken.unsqueeze(0) - 1
    return AtBudget(
        budget=budget,
        accuracy=right.gather(0, last).mean().item(),
        cost=each.spent.cumsum(0).gather(0, last).mean().item(),
        at_random=(shares @ right.mean(1)).item(),
        cost_at_random=(shares @ each.spent.mean(1).cumsum(0)).item(),
    )
