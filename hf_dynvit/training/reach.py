"""Which budgets the gates of a model can meet: its cost with every learned gate closed, and with every one open."""

import torch

from ..model.encoder import encode
from ..model.gate import Gate
from ..model.gate_random import RandomGate


SHUT = 1e4  # added to logits, it decides whatever else is in them
TOLERANCE = 0.002  # that of the calibration


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
    if not _learned(model) or _draws(model):
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
    biases = [gate.score.bias for gate in _learned(model)]
    given, was_training, layout = [bias.clone() for bias in biases], model.training, model._layout
    size, parameter = model.config.image_size, next(model.parameters())
    size = (size, size) if isinstance(size, int) else size
    image = torch.zeros(1, model.config.num_channels, *size, device=parameter.device, dtype=parameter.dtype)
    costs = []
    model.eval()
    model.layout = None
    try:
        for shift in (-SHUT, SHUT):
            for bias, value in zip(biases, given, strict=True):
                bias.copy_(value + shift)
            costs.append(encode(model, image, gating="threshold")[1].item())
    finally:
        for bias, value in zip(biases, given, strict=True):
            bias.copy_(value)
        model.layout = layout
        model.train(was_training)
    return tuple(costs)


def steady_range(model):
    """`cost_range`, without limits where gates draw at random, which would be drawn from for it."""
    return (-float("inf"), float("inf")) if _draws(model) else cost_range(model)


def _draws(model):
    return any(isinstance(module, RandomGate) for module in model.modules())


def _learned(model):
    return [module for module in model.modules() if isinstance(module, Gate)]
