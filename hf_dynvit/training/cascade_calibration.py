"""Calibration of a cascade: the thresholds of each look, then from which confidence an image needs no further one.

The confidence is a decision per image whose only parameter follows from the budget: on images that were not trained on, the
look's own mean cost is met first, then for each of several mean costs the confidence that leaves just as many images
unsure. Features of the first look's logits that predict the gain of the second by ridge regression decided no better.

Letters: K confidences, L looks, B images.
"""

import re

import torch

from ..measure.looks import each_look
from ..model.budgets import looked_up
from ..model.cascade import SURE
from .resolution import looks_for


POINTS = 17  # budgets of a table, evenly spaced between the cost of the first look and that of all


def read_looks(words, config=None, budget=None, gated=True):
    """["160@0.2", "224@0.5"], the side that images are resized to and the mean cost of each look -> looks as in
    `DynViTConfig`; None for no words.

    Args:
        config, budget, gated: of `looks_for` (resolution.py), which chooses them for ["auto"].

    Raises:
        ValueError: words of another form.
    """
    if words == ["auto"]:
        return None if config is None else looks_for(config, budget, gated)
    looks = []
    for word in words:
        found = re.fullmatch(r"(\d+)@(\d*\.?\d+)", word)
        if found is None:
            raise ValueError(
                f"cascade must be auto or looks such as 160@0.2 224@0.5, side of images @ mean cost, got {word!r}"
            )
        looks.append({"resolution": int(found[1]), "budget": float(found[2])})
    return looks or None


def words_of(cascade):
    """What `read_looks` reads as a cascade whose looks all have a resolution; none of None."""
    return [f"{look['resolution']}@{look['budget']:.4f}" for look in cascade or []]


def calibrate_cascade(model, batches, look_at, budget):
    """Set the shift of each look and the table of confidences, and the budget that the cascade is used at.

    Args:
        model: a cascade, in evaluation mode; no weight of it changes.
        batches: list of `pixel_values` (B, channels, height, width) that were not trained on. No labels are used.
        look_at: (look, its budget) -> the shift at which its mean cost is that budget.
        budget: mean cost to aim at, of all looks together.

    Returns:
        The confidence at that budget, and the mean cost that it gives on the batches.

    Raises:
        ValueError: a budget below the cost of the first look or above that of all looks.
    """
    config = model.config
    config.cascade = [{**look, "shift": look_at(index, look["budget"])} for index, look in enumerate(config.cascade)]
    each = each_look(model, batches)
    table = _table(each.sure[:-1], each.spent)
    (least, _), (most, _) = table[0], table[-1]
    if not least <= budget <= most:
        raise ValueError(
            f"a budget of {budget} is out of reach of this cascade: its first look costs {least:.3f}, all looks {most:.3f}"
        )
    config.budget, config.budget_confidences = float(budget), table
    with torch.no_grad():
        cost = torch.cat([model(batch).cost for batch in batches]).mean().item()
    return looked_up(table, budget, 1), cost


def _table(sure, spent):
    """From how sure all looks but the last leave images (L - 1, B), and the costs of all (L, B): [[budget, confidence], ...], both rising: the confidence at which the mean cost is nearest to each budget."""
    candidates = torch.cat([sure.flatten(), sure.new_tensor([0.0, SURE])]).unique()  # (K,), the least first
    unsure = (sure.unsqueeze(0) < candidates.view(-1, 1, 1)).long().cummin(1).values  # (K, L - 1, B)
    costs = (spent[0] + (unsure * spent[1:]).sum(1)).mean(1)  # (K,)
    table = []
    for budget in torch.linspace(costs[0].item(), min(1.0, costs[-1].item()), POINTS).double():
        nearest = (costs - budget).abs().argmin()
        cost, confidence = min(1.0, costs[nearest].item()), candidates[nearest].item()
        if not table or (cost > table[-1][0] + 1e-4 and confidence > table[-1][1]):
            table.append([cost, confidence])
    return table
