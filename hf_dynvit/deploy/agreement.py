"""How far an exported model agrees with the packed one in PyTorch, image by image."""

import math
from typing import NamedTuple

import numpy as np
import torch


BATCH = 8  # images that the runtime is given at a time
TOLERANCE = 1e-4  # of logits in float32
DECIDED_OTHERWISE = 0.02  # share of images that may have a token on the threshold, which rounding decides


class Agreement(NamedTuple):
    """An exported model beside PyTorch, on the same images."""

    images: int
    largest: float | None  # difference of logits, over images with the same decisions; None: they are meant to differ
    same: float | None  # share of images whose cost is the same, and so their decisions
    top1: float  # share of images with the same prediction
    cost: float  # mean, of the exported model
    looks: float  # mean number, 1 without a cascade
    accuracy: float | None = None  # of the exported model, where labels are known
    accuracy_packed: float | None = None  # of the model in PyTorch

    def check(self):
        """Raise RuntimeError for what should be the same model and is not."""
        if not self.largest <= TOLERANCE or self.same < 1 - DECIDED_OTHERWISE:
            raise RuntimeError(
                f"the exported model computes something else than PyTorch: logits are off by {self.largest:.2g}, allowed is "
                f"{TOLERANCE:.2g}, and {1 - self.same:.1%} of {self.images} images are decided otherwise"
            )

    def text(self, model, format, quantize, merges="own"):
        """A paragraph for people."""
        text = f"{model} for {format}, {quantize or 'float32'}, beside PyTorch in float32 on {self.images} images: "
        text += f"the same prediction for {self.top1:.1%}, mean cost {self.cost:.3f}."
        if self.accuracy is not None:
            text += f" Top-1 {self.accuracy:.2%}, in PyTorch {self.accuracy_packed:.2%}."
        text += (
            " Every image merges as much as the others, in PyTorch as much as it wants." if merges == "fixed" else ""
        )
        if quantize is None and merges == "own":
            text += (
                f" The same decisions for {self.same:.1%}; their largest difference of logits is {self.largest:.2g}."
            )
        return text


@torch.no_grad()
def agreement(model, runtime, pixel_values, labels=None):
    """The `Agreement` of a `DynViTRuntime`, which may take batches, with the packed model, image by image.

    Args:
        model: in evaluation mode. pixel_values: float32 array (images, channels, height, width).
        labels: int64 tensor (images,); None: they are not known.
    """
    parts = [runtime(pixel_values[start : start + BATCH]) for start in range(0, len(pixel_values), BATCH)]
    found = type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))
    wanted = [model(torch.from_numpy(image[None])) for image in pixel_values]
    logits, cost = (torch.cat([getattr(one, name) for one in wanted]) for name in ("logits", "cost"))
    off = (torch.from_numpy(found.logits) - logits).abs().amax(1)
    same = (torch.from_numpy(found.cost) - cost).abs() < 1e-6
    guesses = [torch.from_numpy(found.logits).argmax(1), logits.argmax(1)]
    accuracy = [None, None] if labels is None else [(guess == labels).float().mean().item() for guess in guesses]
    return Agreement(
        images=len(logits),
        largest=off[same].max().item() if same.any() else math.nan,
        same=same.float().mean().item(),
        top1=(guesses[0] == guesses[1]).float().mean().item(),
        cost=float(found.cost.mean()),
        looks=float(found.looks.mean()),
        accuracy=accuracy[0],
        accuracy_packed=accuracy[1],
    )
