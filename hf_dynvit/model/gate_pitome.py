"""PiToMe (Tran et al., 2024, arXiv 2405.16148): tokens that are like many others merge, and those that stand alone are left.

What differs from the published code: 1. tokens are likened after the layer's norm, not by their keys; 2. they merge before
the attention of a layer; 3. a number of merges per layer in place of a rate, to stand beside `tome`.

Letters: B images, N tokens, D channels.
"""

import torch
from torch.nn import functional as F

from .amounts import ranks
from .decisions import UNTOUCHED, Action, patches_there
from .gate import NO_EXPLORATION, Gate
from .merging import itself
from .options import check_options
from .rows import directions, no_autocast


class PitomeGate(Gate):
    """Of the 2 `merged` tokens of the most energy every second one merges into the most similar of the others.

    In the paper the margin falls from 0.9 to 0 with depth.
    """

    slots = ("attention_tokens", "mlp_tokens")
    drop = merge = pairs = True

    def __init__(self, config, merged=8, margin=0.5):
        super().__init__()
        check_options("a pitome gate", merged=merged, margin=margin)
        self.merged, self.margin, self.width = merged, margin, config.hidden_size

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        there = patches_there(tokens, state, self.protected)
        unit = directions(tokens)
        with no_autocast(tokens):
            likeness = (unit @ unit.transpose(1, 2)).float()  # (B, N, N)
        place = ranks(self.energy(likeness, there), there)
        chosen = there & (place < 2 * (there.sum(1, keepdim=True) // 2).clamp(max=self.merged))
        goes, takes = chosen & (place % 2 == 0), chosen & (place % 2 == 1)
        partner = likeness.masked_fill(~takes.unsqueeze(1), -torch.inf).argmax(-1)
        keep = ~goes if replay is None else replay
        return Action(keep, into=torch.where(goes, partner, itself(tokens[..., 0])))

    def energy(self, likeness, there):
        """(B, N): the mean over the patches of its image of elu(cosine - `margin`), as in the published code (in the paper
        a cosine above the margin counts whole); high in large groups of similar tokens.

        Args:
            likeness: cosines (B, N, N). there: (B, N) bool, the patches that are left.
        """
        count = there.sum(1, keepdim=True)
        return (F.elu(likeness - self.margin) * there.unsqueeze(1)).sum(-1) / count.clamp(min=1)

    def macs(self, num_tokens, alive=None):
        tokens = num_tokens if alive is None else alive
        return tokens * tokens * self.width
