"""The contract of all gates: what a decision is, and how logits become one (sampled, thresholded or replayed)."""

import math
from typing import NamedTuple

import torch
from torch import nn


# How a forward decides. sample: stochastic, straight-through; threshold: deterministic; open: keep everything.
GATINGS = ("sample", "threshold", "open")


class LayerDecisions(NamedTuple):
    """What one layer runs, for B images of N tokens and H heads; `None` keeps everything.

    A bool says keep or not; a float is the same as 0.0 or 1.0 and carries the straight-through gradient.
    """

    attention_tokens: torch.Tensor | None = None  # (B, N) tokens that take part in attention
    mlp_tokens: torch.Tensor | None = None  # (B, N) tokens that the MLP transforms
    heads: torch.Tensor | None = None  # (B, H)
    sublayers: torch.Tensor | None = None  # (B, 2) attention, MLP
    into: torch.Tensor | None = None  # (B, N) the token that takes on each one dropped for good; itself: none

    def keeps(self):
        """The decisions that say keep or not, by name, without those that are None."""
        return {slot: keep for slot, keep in self._asdict().items() if slot != "into" and keep is not None}


class TokenState(NamedTuple):
    """What earlier layers have done to the tokens for good."""

    alive: torch.Tensor | None = None  # (B, N) not dropped; None: all
    size: torch.Tensor | None = None  # (B, N) patches that a token stands for; None: one each


def sample_straight_through(logits, tau, threshold, noise=1.0):
    """Gumbel-sigmoid with a hard forward and a soft backward (AdaViT, Eq. 5).

    Args:
        logits: any shape.
        tau: temperature of the relaxation; scales the gradient only when `threshold` is 0.5.
        threshold: keep where the relaxed sample exceeds it; the keep probability is
            `sigmoid(logit - tau * log(threshold / (1 - threshold)))`.
        noise: scale of the Gumbel noise; at 0 a sample is what the threshold decides in evaluation.

    Returns:
        Floats of the shape of `logits`, exactly 0.0 or 1.0.
    """
    logits = logits.float()
    # The difference of two Gumbel variables is logistic.
    uniform = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((logits + noise * torch.logit(uniform)) / tau)
    hard = (soft > threshold).float()
    return hard + (soft - soft.detach())


class Score(nn.Linear):
    """The linear map from features to logits; fresh, its logits are `init_bias` whatever the features."""

    def __init__(self, in_features, out_features, init_bias):
        super().__init__(in_features, out_features)
        self.init_bias = init_bias


class Gate(nn.Module):
    """A small policy that sits on one layer and decides one kind of unit.

    Subclasses set `slots` (the fields of `LayerDecisions` they fill) and define `logits`. Gates of tokens read the tokens
    after the sub-layer's LayerNorm, gates of heads and sub-layers those entering the block.
    """

    slots: tuple[str, ...] = ()
    drop = False  # whether tokens that are not kept are gone for later layers too
    merge = False  # and leave their content to the kept token most like them

    def __init__(self, in_features, units, init_bias=3.0, tau=1.0, threshold=0.5):
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold of a gate must be in (0, 1), got {threshold}")
        if tau <= 0:
            raise ValueError(f"tau of a gate must be positive, got {tau}")
        self.score = Score(in_features, units, init_bias)
        self.tau, self.threshold = tau, threshold

    def logits(self, tokens):
        """tokens (B, N, D) -> (B, units)."""
        raise NotImplementedError

    def forward(self, tokens, gating, replay=None, noise=1.0):
        """tokens (B, N, D) -> keep (B, units): bool, or float with a straight-through gradient when sampled."""
        logits = self.logits(tokens)
        if replay is not None:
            return replay
        if gating == "sample":
            return sample_straight_through(logits, self.tau, self.threshold, noise)
        return logits > math.log(self.threshold / (1 - self.threshold))

    def macs(self, num_tokens):
        """Multiply-accumulates of one image with `num_tokens` tokens."""
        return self.score.in_features * self.score.out_features
