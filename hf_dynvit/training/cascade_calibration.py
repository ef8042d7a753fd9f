"""Calibration of a cascade: the thresholds of each look, then from which confidence an image needs no further one.

The confidence is a decision per image whose only parameter follows from the budget: on images that were not trained on, the
look's own mean cost is met first, then for each of several mean costs the confidence that leaves just as many images
unsure. Features of the first look's logits that predict the gain of the second by ridge regression decided no better.

Letters: K confidences, L looks, B images.
"""

import torch
from transformers.utils import logging

from ..measure.looks import each_look
from ..model.budgets import looked_up, shift_gates
from ..model.cascade import SURE, check_rising, set_look_shifts


logger = logging.get_logger("hf_dynvit.training.calibration")
WORTH_A_WARNING = 0.02  # a cost that far from the budget is another one
MOST_TRIED = 512  # confidences, however many images there are
LEAST_STEP = 1e-4  # between budgets of a table
POINTS = 17  # budgets of a table, evenly spaced between the cost of the first look and that of all


def calibrate_cascade(model, batches, look_at, budget):
    """Set the shift of each look and the table of confidences, and the budget that the cascade is used at.

    What the shifts have in common goes into the gates' biases: the last look has none. Where no gates learn, each look's budget
    becomes what it costs.

    Args:
        model: a cascade, in evaluation mode; no weight of it changes but these biases.
        batches: list of `pixel_values` (B, channels, height, width) that were not trained on. No labels are used.
        look_at: (look, its budget) -> the shift at which its mean cost is that budget.
        budget: mean cost to aim at, of all looks together; one out of reach becomes the nearest, and it is said.

    Returns:
        The confidence at that budget, and the mean cost that it gives on the batches.

    Raises:
        ValueError: looks without gates that do not begin with the cheapest, whatever budgets they were given.
    """
    config, gates = model.config, model.learned_gates()
    if gates:
        shifts = [look_at(index, look["budget"]) for index, look in enumerate(config.cascade)]
        shift_gates(gates, shifts[-1])
        set_look_shifts(config, [shift - shifts[-1] for shift in shifts])
    each = each_look(model, batches)
    if not gates:
        costs = each.spent.mean(1).clamp(max=1.0).tolist()
        check_rising(costs)
        config.cascade = [{**look, "budget": round(cost, 4)} for look, cost in zip(config.cascade, costs, strict=True)]
    table = confidences(each.sure[:-1], each.spent, budget)
    (least, _), (most, _) = table[0], table[-1]
    config.budget, config.budget_confidences = float(min(max(budget, least), most)), table
    with torch.no_grad():
        cost = torch.cat([model(batch).cost for batch in batches]).mean().item()
    if abs(cost - budget) > WORTH_A_WARNING:
        logger.warning(
            f"the budget is {budget}, and the nearest mean cost of this cascade is {cost:.3f}: its confidences give {least:.3f} to "
            f"{most:.3f}"
        )
    return looked_up(table, config.budget, 1), cost


def confidences(sure, spent, budget):
    """[[budget, confidence], ...], both rising: the confidences at which mean costs are nearest to budgets.

    Args:
        sure: (L - 1, B), how sure all looks up to each but the last leave an image. spent: (L, B), what each look costs.
        budget: one that shall be among them, if it is in reach.
    """
    values = sure.flatten().sort().values.unique()
    values = values[torch.linspace(0, len(values) - 1, min(len(values), MOST_TRIED)).round().long()]
    between = (values[1:] + values[:-1]) / 2
    ends = [values[:1] * (1 - 1e-6), (values[-1:] * (1 + 1e-6)).clamp(max=SURE)]
    tried = torch.cat([ends[0], between, ends[1]])  # (K,), the least first
    unsure = (sure.unsqueeze(0) < tried.view(-1, 1, 1)).long().cummin(1).values  # (K, L - 1, B)
    costs = (spent[0] + (unsure * spent[1:]).sum(1)).mean(1)  # (K,)
    alike = (sure == values[-1]).any(0).sum() > 1 and costs[-1] - costs[-2] > WORTH_A_WARNING
    if alike:  # as sure as numbers can say, all of these images: no confidence is between none of them and all
        tried, costs = tried[:-1], costs[:-1]
    most, table = min(1.0, costs[-1].item()), []
    for wanted in sorted(
        [*torch.linspace(costs[0].item(), most, POINTS).tolist(), min(max(budget, costs[0].item()), most)]
    ):
        nearest = (costs - wanted).abs().argmin()
        cost, confidence = min(1.0, costs[nearest].item()), tried[nearest].item()
        if table and costs[nearest] > cost + WORTH_A_WARNING:  # dearer than any budget
            continue
        if not table or (cost > table[-1][0] + LEAST_STEP and confidence > table[-1][1]):
            table.append([cost, confidence])
    return table
