"""Forwards in the numbers that a model's weights have, whatever a training has put around them."""

from contextlib import contextmanager

import torch


UNWRAPPED = "_original_forward"  # where accelerate keeps the forward that it has put autocast around


@contextmanager
def in_own_precision(model):
    """No autocast meanwhile: neither one around, nor that of accelerate, which stays in the forward of a model trained with it."""
    own = vars(model)
    wrapped = own["forward"] if UNWRAPPED in own and "forward" in own else None
    if wrapped is not None:
        model.forward = own[UNWRAPPED]
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
