"""Training forwards in which images differ in how many patches they keep: groups of images that keep as many each.

A group is dense, so nothing is padded and no kernel for ragged batches is needed.
Letters: B images, G of them in a group, n patches, K kept patches.
"""

from typing import NamedTuple

import torch

from .outputs import DynViTClassifierOutput


class Group(NamedTuple):
    """Images of a batch that keep as many patches: int64 (G,), and which each of them keeps: int64 (G, K)."""

    images: torch.Tensor
    patches: torch.Tensor

    def sorted(self):
        """The same with the patches of each image in its order."""
        return self._replace(patches=self.patches.sort(1).values)


def group_by_need(need, groups, most):
    """Images sorted by need and cut into groups of nearly equal size.

    Args:
        need: (B,) patches that each image would keep if it were alone with its need.
        groups: how many; fewer where there are fewer images.
        most: patches that an image can keep.

    Returns:
        [(images (G,), K)], K the mean need of the group, in 1..most.
    """
    parts = need.argsort(stable=True).chunk(groups)
    counts = torch.stack([need[part].double().mean() for part in parts]).round().clamp(1, most).int().tolist()
    return list(zip(parts, counts, strict=True))


def run_groups(model, inputs, groups, **options):
    """The outputs of one batch, run group by group: logits and cost in the order of the batch, loss the mean over it.

    Args:
        model: a `DynViTForImageClassification` without gates.
        inputs: {"pixel_values": (B, ...), "labels": (B,)}, labels may be missing.
        groups: `Group`s that hold each image once.
        options: further arguments of the model's forward.
    """
    parts = [
        model(**{name: values[group.images] for name, values in inputs.items()}, patches=group.patches, **options)
        for group in groups
    ]
    place = torch.cat([group.images for group in groups]).argsort()
    logits, cost = (torch.cat([getattr(part, name) for part in parts])[place] for name in ("logits", "cost"))
    loss = None
    if parts[0].loss is not None:
        loss = sum(part.loss * len(group.images) for part, group in zip(parts, groups, strict=True)) / len(place)
    return DynViTClassifierOutput(loss, logits, cost, parts[0].decisions)
