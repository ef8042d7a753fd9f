"""A-ViT (Yin et al., 2022, arXiv 2112.07658): each token adds up a halting score over the layers, and leaves when it is full.

What differs from the paper: 1. the score is a linear map of the normed token, where the paper takes one channel, which a
trained ViT does not have to spare; 2. no mean over layers, weighted by the scores, stands in for the last token; 3. it is
taught by an objective of this package, not by ponder loss and a prior of depths; 4. protected tokens never halt.

Letters: B images, N tokens, D channels.
"""

import torch

from .decisions import UNTOUCHED, Action
from .gate import NO_EXPLORATION, LearnedGate, Score, cut, shifted
from .gate_patch import PatchGate


FULL = 0.99  # 1 - epsilon of the paper: the sum at which a token halts
SHARP = 10.0  # logit per halting score that is left
# Deviation of the fresh scores of normed tokens: tokens that were alike would all leave before one layer.
SPREAD = 1.5


class HaltingGate(LearnedGate):
    """A token stays while the sum of its halting scores, this layer's included, is below 0.99.

    The halting score of a layer is sigmoid(-score(token)), so that a common shift of the scores moves all layers; the logit
    is what is left of the sum. `init_bias` is 10 as in the paper: fresh, no token halts.
    """

    slots = ("attention_tokens", "mlp_tokens")
    drop = True

    def __init__(self, config, init_bias=10.0, **options):
        super().__init__(config.hidden_size, 1, init_bias=init_bias, **options)
        self.score = Score(config.hidden_size, 1, init_bias, init_std=SPREAD / config.hidden_size**0.5)

    def halting(self, tokens, state=UNTOUCHED, shift=None):
        """The sum of halting scores (B, N), this layer's included; shift: of an `Exploration`, added to the scores."""
        now = torch.sigmoid(-shifted(self.score(tokens).squeeze(-1), shift).float())
        return now if state.halting is None else state.halting + now

    def logits(self, tokens, state=UNTOUCHED):
        return self.left(self.halting(tokens, state))

    def left(self, halting):
        """The logits (B, N) of sums of halting scores (B, N)."""
        return SHARP * (FULL - halting) + cut(self.threshold)

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        halting, exploration = self.halting(tokens, state, exploration.shift), exploration._replace(shift=None)
        keep = self.decide(self.left(halting), gating, exploration) if replay is None else replay
        return Action(keep, halting=halting)

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        tokens = tokens.detach()
        halting, exploration = self.halting(tokens, state, exploration.shift), exploration._replace(shift=None)
        action = self.drawn(tokens, self.left(halting), self.decidable(tokens, state), replay, exploration)
        return action._replace(halting=halting)

    settle, decidable = PatchGate.settle, PatchGate.decidable

    def macs(self, num_tokens, alive=None):
        return num_tokens * super().macs(num_tokens)
