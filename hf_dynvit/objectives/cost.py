"""The cost objective: the mean cost of a batch meets the budget.

    loss = cost_weight * (mean_b cost_b - budget)^2        (one loss on the whole model, as in DyDiT, Eq. 6)

The gradient reaches gates straight-through. `usage` has a target for each kind of unit instead of one for all MACs;
`reinforce` has the derivative of this loss as the price of its reward.
"""

from dataclasses import dataclass

from .base import Objective
from .options import option


def budget_loss(cost, budget):
    """Squared distance of the mean of cost (B,) from the budget."""
    return (cost.mean() - budget) ** 2


class CostObjective(Objective):
    """The mean cost is led to the budget, and stays there."""

    @dataclass
    class Options:
        cost_weight: float = option(20.0, help="weight of the squared distance from the budget")

    def loss(self, model, inputs, outputs, step):
        if not outputs.cost.requires_grad:  # no gates, or frozen ones
            return 0.0
        return self.options.cost_weight * budget_loss(outputs.cost, step.budget)
