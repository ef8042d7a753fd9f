"""Each look of a cascade on its own: what all images would get and cost after it, and what chance would make of as many.

Letters: L looks, B images.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm


class EachLook(NamedTuple):
    """After each look, by the mean probability of all looks so far; tensors (L, B) on CPU.

    Attributes:
        sure: probability of the most likely class. read: that class. spent: cost of the look alone.
    """

    sure: torch.Tensor
    read: torch.Tensor
    spent: torch.Tensor


@dataclass(kw_only=True)
class Looks:
    """A cascade beside the same number of looks drawn at random.

    Attributes:
        accuracy, cost: of all images after one look, after two, ...; the costs add up.
        shares: of the images that take one look, two, ... at the model's budget.
        at_random: expected accuracy if these shares of the images, whichever, took one look, two, ...
    """

    accuracy: list[float]
    cost: list[float]
    shares: list[float]
    at_random: float


@torch.no_grad()
def each_look(model, batches):
    """`EachLook` of a cascade in evaluation mode, on a list of `pixel_values` (B, channels, height, width)."""
    found = [_after_each(model, pixel_values) for pixel_values in batches]
    return EachLook(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))


def _after_each(model, pixel_values):
    total, parts = None, []
    for look in range(len(model.config.cascade)):
        out = model(pixel_values, look=look)
        found = out.logits.double().log_softmax(-1)
        total = found if total is None else torch.logaddexp(total, found)
        most, read = total.max(-1)
        parts.append((most.exp() / (look + 1), read, out.cost.double()))
    return EachLook(*(torch.stack(part).cpu() for part in zip(*parts, strict=True)))


@torch.no_grad()
def measure_looks(model, loader):
    """`Looks` of a cascade on the images of a loader (dicts of `pixel_values` and `labels`)."""
    parts, taken, labels = [], [], []
    for batch in tqdm(loader, desc="each look alone", unit="batch"):
        pixel_values = batch["pixel_values"].to(model.device, model.dtype)
        parts.append(_after_each(model, pixel_values))
        taken.append(model(pixel_values).looks.cpu())
        labels.append(batch["labels"])
    each = EachLook(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))
    accuracy = (each.read == torch.cat(labels)).double().mean(1)
    shares = torch.cat(taken).bincount(minlength=len(accuracy) + 1)[1:].double() / len(each.read[0])
    return Looks(
        accuracy=accuracy.tolist(),
        cost=each.spent.mean(1).cumsum(0).tolist(),
        shares=shares.tolist(),
        at_random=(shares @ accuracy).item(),
    )
