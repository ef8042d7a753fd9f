"""`choose_resolution`: at which size of images a budget is spent best, without labels and without training.

Fewer patches by smaller images, or by gates: below half of the computation the two together lose less than either. Which
share each should have depends on checkpoint and images, so that it is tried.
"""

import math
from typing import NamedTuple

import torch

from ..model.configuration_dynvit import pair
from ..model.cost import dense_macs
from ..model.resolution import tokens_of
from ..objectives.task_loss import check_classes, distillation_loss


TOO_DEAR = 0.02  # cost above a budget, as mean over other images may bring it
LEFT_TO_GATES = (0.45, 0.85)  # relative costs, of a smaller image, that are worth a trial


class Trial(NamedTuple):
    """A model at one size of images."""

    resolution: int | None  # None: images as they come
    model: torch.nn.Module
    cost: float  # mean over the images
    distance: float  # mean KL divergence from the dense model's predictions, nats


def sizes_for(config, budget):
    """Sizes of images, None for as they come, at which gates meet a budget by what they can leave out.

    Args:
        config: of a ViT with square images. budget: mean cost, relative to the dense model.
    """
    (side, width), (patch, patch_width) = pair(config.image_size), pair(config.patch_size)
    if side != width or patch != patch_width:
        raise ValueError(f"a resolution is chosen for square images and patches, got {config.image_size} and {patch}")
    full = dense_macs(config, tokens_of(config, (side, side)), config.num_labels)
    found = [None]
    for smaller in range(largest_size(config) - patch, 0, -patch):
        left = budget * full / dense_macs(config, tokens_of(config, (smaller, smaller)), config.num_labels)
        if LEFT_TO_GATES[0] <= left <= LEFT_TO_GATES[1]:
            found.append(smaller)
    return found


def largest_size(config):
    """The side of square images up to their last whole patch: a ViT does not look at what is beyond."""
    side, patch = pair(config.image_size)[0], pair(config.patch_size)[0]
    return side // patch * patch


def nearest_size(config, budget, last_layer=None):
    """The size of images at which the dense model, or one with such a `last_layer`, costs nearest to a budget; None: as they come."""
    patch, whole = pair(config.patch_size)[0], largest_size(config)

    def cost(size):
        return dense_macs(config, tokens_of(config, (size, size)), config.num_labels, last_layer)

    full = dense_macs(config, tokens_of(config, (whole, whole)), config.num_labels)
    best = min(range(whole, 0, -patch), key=lambda size: abs(cost(size) / full - budget))
    return None if best == whole else best


def choose_resolution(dense, build, sizes, batches):
    """The `Trial` nearest to the dense model's predictions, and all of them.

    Args:
        dense: the model without gates. build: resolution -> a model that meets the budget.
        sizes: resolutions to try. batches: list of `pixel_values` (B, channels, height, width); no labels are used.

    Raises:
        ValueError: a regression, whose predictions are compared in another way.
    """
    check_classes(dense.config)
    with torch.no_grad():
        wanted = [dense(batch).logits for batch in batches]
    trials = [trial(size, build(size), wanted, batches) for size in sizes]
    return nearest_of(trials), trials


def within(trials, budget):
    """Those that cost no more than a budget; where none does, which gates may not reach, the cheapest."""
    met = [one for one in trials if one.cost <= budget + TOO_DEAR]
    return met or [min(trials, key=lambda one: one.cost)]


def nearest_of(trials):
    """The `Trial` nearest to the dense model's predictions; one whose distance is no number comes last."""
    return min(trials, key=lambda trial: (math.isnan(trial.distance), trial.distance))


@torch.no_grad()
def trial(resolution, model, wanted, batches):
    """The `Trial` of a model in evaluation mode; wanted: for each batch the logits (B, classes) of the dense model."""
    outputs = [model(batch) for batch in batches]
    several = model.config.problem_type == "multi_label_classification"
    distance = distillation_loss(torch.cat([out.logits for out in outputs]), torch.cat(wanted), several)
    return Trial(resolution, model, torch.cat([out.cost for out in outputs]).mean().item(), distance.item())
