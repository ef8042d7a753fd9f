"""Whether it pays that gates decide per image how much to compute: their cost beside difficulty, and beside equal costs.

Letters: n images.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..model.gate_random import RandomGate
from .thresholds import shiftable


STEPS = 10  # forwards of an image at most, to find its shift
FIRST = 0.25  # the first shift, doubled until it is too far; from there on the distance is halved
NEAR = 0.001  # distance from the cost to meet at which the search ends


@dataclass(kw_only=True)
class PerImage:
    """A model with the thresholds that all images share, and with those of each image alone that give all the same cost.

    Attributes:
        images: how many. accuracy, cost, cost_std, cost_min, cost_max: by the shared thresholds.
        equal_accuracy, equal_cost, equal_cost_std: at the same cost for every image, as near as its thresholds come to it.
        only_shared, only_equal: images that are right by the shared thresholds alone, and at the same cost alone.
        correlation: Spearman's, of cost with the dense model's loss; None where one of them is alike for all images.
        dense_accuracy: of the dense model of the same weights.
    """

    images: int
    accuracy: float
    cost: float
    cost_std: float
    cost_min: float
    cost_max: float
    equal_accuracy: float
    equal_cost: float
    equal_cost_std: float
    only_shared: int
    only_equal: int
    correlation: float | None
    dense_accuracy: float


class ImageCosts(NamedTuple):
    """What was measured of each image; tensors (n,) on CPU.

    Attributes:
        places: where they are in the entrant's images. labels, read, dense_read, equal_read: classes; the given one, and
            those read by the model, by the dense model, and at the same cost. cost, equal_cost: of the model and at the
            same cost. dense_loss: cross-entropy of the dense model, in nats.
    """

    places: torch.Tensor
    labels: torch.Tensor
    cost: torch.Tensor
    read: torch.Tensor
    dense_loss: torch.Tensor
    dense_read: torch.Tensor
    equal_cost: torch.Tensor
    equal_read: torch.Tensor

    def summary(self):
        """The `PerImage` of them."""
        right, equal = self.read == self.labels, self.equal_read == self.labels
        return PerImage(
            images=len(self.labels),
            accuracy=_mean(right),
            cost=_mean(self.cost),
            cost_std=_deviation(self.cost),
            cost_min=self.cost.min().item(),
            cost_max=self.cost.max().item(),
            equal_accuracy=_mean(equal),
            equal_cost=_mean(self.equal_cost),
            equal_cost_std=_deviation(self.equal_cost),
            only_shared=int((right & ~equal).sum()),
            only_equal=int((equal & ~right).sum()),
            correlation=rank_correlation(self.cost, self.dense_loss),
            dense_accuracy=_mean(self.dense_read == self.labels),
        )


def check_decides(model):
    """Refuse a model that has no thresholds to compare, or decides anew each time, with a ValueError that says so."""
    found = [entry["gate"] for entry in model.config.gates or []]
    if model.config.cascade is not None:
        raise ValueError(
            "cost per image is held against the same cost for each within one look: a cascade has several"
        )
    learned = [gate for gate in model.learned_gates() if getattr(gate, "merged", None) is None]
    if not learned or any(isinstance(module, RandomGate) for module in model.modules()):
        raise ValueError(
            f"cost per image is measured of models with learned gates, with thresholds, and no random ones, the gates here are {found}"
        )


@torch.inference_mode()
def per_image(entrant, count, seed=0, batch_size=32):
    """`ImageCosts` of a model.

    The same cost for every image is the model's mean cost. For each image alone one number is added to the logits of all
    learned gates, found by bisection, so that the image costs that much: the gates still decide which units it uses, no
    longer how many. Of the shifts that were tried the one nearest in cost counts.

    Args:
        entrant: an `Entrant`; its model is left as it was found.
        count: images at most. seed: which ones.
        batch_size: of the forwards that are no search; it changes nothing.

    Raises:
        ValueError: no image, or a model that `check_decides` refuses.
    """
    model, vit = entrant.model, entrant.vit
    check_decides(model)
    if min(count, len(entrant.images)) < 1:
        raise ValueError(f"at least 1 image is needed, got {count} of {len(entrant.images)}")
    places = torch.randperm(len(entrant.images), generator=torch.Generator().manual_seed(seed))[:count]
    images = Subset(entrant.images, places.tolist())
    parts = []
    with shiftable(model) as shift:
        for batch in tqdm(DataLoader(images, batch_size), desc=f"cost per image of {entrant.name}", unit="batch"):
            pixel_values, labels = batch["pixel_values"].to(model.device, model.dtype), batch["labels"]
            out, dense = model(pixel_values), vit(pixel_values).logits.float().cpu()
            loss = F.cross_entropy(dense, labels, reduction="none")
            parts.append((labels, out.cost.float().cpu(), out.logits.argmax(-1).cpu(), loss, dense.argmax(-1)))
        labels, cost, *rest = (torch.cat(part) for part in zip(*parts, strict=True))
        target, equal = _mean(cost), []
        for image in tqdm(DataLoader(images, 1), desc=f"the same cost, {target:.3f}, for each", unit="image"):
            pixel_values = image["pixel_values"].to(model.device, model.dtype)
            equal.append(_nearest(lambda amount, one=pixel_values: _read(model, one, shift, amount), target))
    return ImageCosts(places, labels, cost, *rest, *map(torch.tensor, zip(*equal, strict=True)))


def _read(model, pixel_values, shift, amount):
    """Cost and class of one image, with shifted thresholds."""
    shift(amount)
    out = model(pixel_values)
    return out.cost.item(), out.logits.argmax().item()


def _nearest(read, target):
    """The (cost, class) nearest to a cost, of the shifts that are tried; `read` gives them of a shift."""
    low, high, amount, tried = -math.inf, math.inf, 0.0, []
    for _ in range(STEPS):
        tried.append(read(amount))
        above = tried[-1][0] - target
        if abs(above) <= NEAR:
            break
        low, high = (low, amount) if above > 0 else (amount, high)
        if math.isfinite(high - low):
            amount = (low + high) / 2
        else:
            amount = 2 * amount if amount else math.copysign(FIRST, -above)
    return min(tried, key=lambda one: abs(one[0] - target))


def rank_correlation(one, other):
    """Spearman's correlation of two (n,): that of their ranks, where equal values share the mean of theirs.

    None where all values of one of them are equal.
    """
    ranks = torch.stack((_ranks(one), _ranks(other)))
    return torch.corrcoef(ranks)[0, 1].item() if (ranks != ranks[:, :1]).any(1).all() else None


def _ranks(values):
    _, order, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[order].double()


def _mean(values):
    return values.double().mean().item()


def _deviation(values):
    return values.double().std(correction=0).item()
