"""Thresholds of gates that are tried out: shifted for a while, and afterwards what they were, to the bit."""

from contextlib import contextmanager

import torch


@contextmanager
def shiftable(model):
    """The model in evaluation mode and its default layout, packed, with thresholds to shift; left as it was found.

    Yields:
        A function of one number: it is added to what the logits of all learned gates were at first.
    """
    biases = [gate.score.bias for gate in model.learned_gates()]
    given, was_training, layout = [bias.detach().clone() for bias in biases], model.training, model._layout

    @torch.no_grad()
    def write(values):
        for bias, value in zip(biases, values, strict=True):
            bias.copy_(value)

    model.eval()
    model.layout = None
    try:
        yield lambda amount: write([value + amount for value in given])
    finally:
        write(given)
        model.layout = layout
        model.train(was_training)
