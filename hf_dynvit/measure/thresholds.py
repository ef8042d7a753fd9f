"""Thresholds of gates that are tried out: shifted for a while, and afterwards what they were, to the bit."""

from contextlib import contextmanager

import torch


@contextmanager
def shiftable(model):
    """The model in evaluation mode and its default layout, packed, with thresholds to shift; left as it was found.

    Yields:
        A function of one number: it is added to what the logits of all learned gates were at first.
    """
    gates = model.learned_gates()
    given, was_training, layout = biases_of(gates), model.training, model._layout
    model.eval()
    model.layout = None
    try:
        yield lambda amount: set_biases(gates, [value + amount for value in given])
    finally:
        set_biases(gates, given)
        model.layout = layout
        model.train(was_training)


def biases_of(gates):
    """Copies of the biases of learned gates, in their order."""
    return [gate.score.bias.detach().clone() for gate in gates]


@torch.no_grad()
def set_biases(gates, values):
    """Give learned gates biases as `biases_of` has them."""
    for gate, value in zip(gates, values, strict=True):
        gate.score.bias.copy_(value)
