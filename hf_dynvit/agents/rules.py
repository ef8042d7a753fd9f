"""Rules that choose patches and learn nothing: what a learned agent has to beat at the same number of patches."""

from dataclasses import dataclass

import torch

from ..objectives.options import share
from .base import Agent


class Rule(Agent):
    """Keeps exactly K patches, K from `Agent.count`; subclasses give the order in which patches are kept."""

    @dataclass
    class Options:
        """`return_fraction`: last part of training over which K rises from `n_patch_desired` to all patches; `merge`:
        those left out leave their content to the kept ones most like them (`merge_patches`).
        """

        return_fraction: float = share(0.0)
        merge: bool = False

    def order(self, batch, explore):
        """Patches, the first to keep first: (n,) or (B, n)."""
        raise NotImplementedError

    def choose(self, pixel_values, moment, explore=True):
        count = self.count(moment, explore)
        if count == self.patches:
            return None
        return self.order(len(pixel_values), explore)[..., :count].to(self.device)


class RandomRule(Rule):
    """Others for each image and batch (PatchDropout, Liu et al., 2023); with return_fraction 1 ever more of them."""

    def order(self, batch, explore):
        generator = self.generator if explore else torch.Generator().manual_seed(self.seed)
        return torch.rand(batch, self.patches, generator=generator).argsort(1)


class FixedRule(Rule):
    """The same patches for all images, drawn once from the seed."""

    def order(self, batch, explore):
        return torch.randperm(self.patches, generator=torch.Generator().manual_seed(self.seed))


class CenterRule(Rule):
    """The patches nearest to the centre of the image."""

    def order(self, batch, explore):
        y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in self.sides)
        return (y[:, None] ** 2 + x**2).flatten().argsort(stable=True)
