"""The usage objective of AdaViT (Meng et al., 2022): each kind of unit is used as much as its target says.

    loss = usage_weight * ((tokens - target)^2 + |heads - target| + |sub-layers - target|)

with the shares that a batch uses, as the published code computes them. The gradient reaches gates straight-through. It
follows no budget: `cost` is the objective that counts MACs, whatever they are spent on.
"""

from dataclasses import dataclass

import torch

from .base import Objective
from .options import option, share


def usage_loss(decisions, token_target=0.5, head_target=0.5, sublayer_target=0.5):
    """AdaViT's usage loss, unweighted; [CLS] counts as a token, heads of images that skip both sub-layers do not count.

    Args:
        decisions: L `LayerDecisions`.
        token_target, head_target, sublayer_target: share of units to use, in [0, 1].

    Returns:
        A scalar; 0 for kinds that no gate decides.
    """
    total = 0.0
    tokens = [d.attention_tokens for d in decisions]
    tokens += [d.mlp_tokens for d in decisions if d.mlp_tokens is not d.attention_tokens]  # of a block both are one
    tokens = [keep for keep in tokens if keep is not None]
    if tokens:
        total = total + (torch.stack(tokens).float().mean() - token_target) ** 2
    sublayers = [d.sublayers for d in decisions if d.sublayers is not None]
    if sublayers:
        total = total + (torch.stack(sublayers).float().mean() - sublayer_target).abs()
    heads = [d for d in decisions if d.heads is not None]
    if heads:
        keep = torch.stack([d.heads for d in heads]).float()  # (L, B, H)
        active = torch.stack([_active(d) for d in heads]).unsqueeze(-1)  # (L, B, 1)
        total = total + ((keep * active).sum() / (active.sum() * keep.shape[-1]).clamp(min=1) - head_target).abs()
    return total


def _active(decision):
    """(B,): 1 where an image runs at least one of the two sub-layers."""
    if decision.sublayers is None:
        return torch.ones(len(decision.heads), device=decision.heads.device)
    return (decision.sublayers > 0.5).any(1).float()


class UsageObjective(Objective):
    """Tokens, heads and sub-layers are led to one share."""

    @dataclass
    class Options:
        usage_weight: float = option(2.0, help="weight of AdaViT's usage loss")
        usage_target: float = share(0.5, help="share of tokens, heads and sub-layers to use")

    follows_budget = False

    def loss(self, model, inputs, outputs, step):
        if not outputs.cost.requires_grad:  # no gates, or frozen ones
            return 0.0
        target = self.options.usage_target
        return self.options.usage_weight * usage_loss(outputs.decisions, target, target, target)
