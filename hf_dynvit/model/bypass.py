"""What a block or sub-layer adds where it is skipped: nothing, its mean, or a cheap map of each token.

It reads the token as it stands in the stream: read after the sub-layer's norm, a map fitted as well.

Letters: D channels.
"""

import torch
from torch import nn

from .gate import Score
from .options import check_choice


BYPASSES = ("none", "mean", "diagonal", "linear", "low_rank")


class Bypass(nn.Module):
    """A map of the tokens that enter a sub-layer, before its norm. Fresh it is 0: what is skipped passes unchanged.

    Args:
        width: D. kind: "mean": b; "diagonal": a * x + b; "linear": W x + b; "low_rank": the same with W of rank `rank`.
    """

    def __init__(self, width, kind, rank):
        super().__init__()
        self.kind, self.rank = kind, rank
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.zeros(width)) if kind == "diagonal" else None
        # Of two factors one is not 0, or neither would ever get a gradient.
        self.down = nn.Linear(width, rank, bias=False) if kind == "low_rank" else None
        inner = {"linear": width, "low_rank": rank}.get(kind)
        self.up = None if inner is None else Score(inner, width, None)

    def forward(self, x):
        """x (..., D) -> (..., D)."""
        if self.scale is not None:
            return x * self.scale + self.bias
        if self.up is None:
            return torch.zeros_like(x) + self.bias  # no view of a parameter, which hooks on modules stumble over
        return self.up(x if self.down is None else self.down(x)) + self.bias

    def macs(self):
        """Multiply-accumulates of the matrix products for one token."""
        return sum(linear.weight.numel() for linear in (self.down, self.up) if linear is not None)

    def adds_nothing(self):
        """Whether it is 0 for every token, as when fresh."""
        return not any(weight.any() for name, weight in self.named_parameters() if name != "down.weight")


def build_bypass(gate, config, kind, rank, whole):
    """What a gate of sub-layers has as `bypass`: a `ModuleList` of one for the block, or of two for attention and MLP.

    Args:
        gate: how an error calls the gate. kind: one of `BYPASSES`; "none" gives None. rank: of "low_rank".
        whole: whether the gate decides attention and MLP alike.
    """
    check_choice(gate, "bypass", kind, BYPASSES)
    if type(rank) is not int or rank < 1 or (kind == "low_rank" and rank > config.hidden_size):
        raise ValueError(f"rank of {gate} must be an integer in 1..{config.hidden_size}, got {rank!r}")
    if kind == "none":
        return None
    return nn.ModuleList(Bypass(config.hidden_size, kind, rank) for _ in range(1 if whole else 2))


def bypass_of(gates):
    """The bypasses of a layer, by its gates (slot -> gate): none, one for the block, or two for attention and MLP."""
    gate = gates["sublayers"] if "sublayers" in gates else None
    return () if gate is None or gate.bypass is None else tuple(gate.bypass)
