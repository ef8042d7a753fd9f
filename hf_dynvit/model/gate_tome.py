"""ToMe (Bolya et al., 2023, arXiv 2210.09461): a fixed number of merges in each layer, learned by nothing.

What differs from the published code: 1. tokens are likened by the cosine of the normed tokens, not of their keys;
2. they merge before the attention of a layer, not between attention and MLP.
"""

import torch

from .decisions import UNTOUCHED, Action
from .gate import NO_EXPLORATION, Gate
from .matching import count, match, matching_macs
from .options import check_options


class TomeGate(Gate):
    """The `merged` most similar pairs of every second token and its partner merge, as many for every image.

    Args:
        merged: r of the paper, at most half of the patches that are there.
    """

    slots = ("attention_tokens", "mlp_tokens")
    drop = merge = pairs = True

    def __init__(self, config, merged=8):
        super().__init__()
        check_options("a tome gate", merged=merged)
        self.merged, self.width = merged, config.hidden_size

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        found, num_tokens = match(tokens, state, self.protected), tokens.shape[1]
        if replay is not None:
            return Action(replay, into=found.into(num_tokens))
        distance = found.distance if found.there is None else found.distance.masked_fill(~found.there, torch.inf)
        first = distance.argsort(1)[:, : self.merged]
        stays = torch.ones_like(distance, dtype=torch.bool).scatter(1, first, False)
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Action(found.spread(stays, keep), into=found.into(num_tokens))

    def macs(self, num_tokens, alive=None):
        patches = (num_tokens if alive is None else alive) - count(self.protected, num_tokens)
        return matching_macs(patches, self.width)
