"""The merging gate: ToMe's bipartite matching in every layer, with a threshold per token in place of a number for all.

Letters: B images, N tokens, D channels, A of them that may leave.
"""

import torch

from .gate import NO_EXPLORATION, UNTOUCHED, Action
from .gate_patch import PatchGate
from .matching import count, match, matching_macs


KEPT = 1e4  # logit of a token that may not leave, beyond any shift of the thresholds


class MergeGate(PatchGate):
    """Every second patch token may leave for its most similar partner among the others (ToMe, Bolya et al., 2023, 3.1).

    ToMe merges the r most similar pairs of each layer, the same r for every image. Here a pair merges where
    `score(token) + novelty * (1 - similarity)` falls below the threshold: how many do so is the image's doing, and the
    score, at 0 until it learns, says which tokens must not leave however similar they are. Similarity is the cosine of
    normed tokens, where ToMe takes the mean of the keys over heads.

    Args:
        novelty: what the distance to the partner counts in the logit at first; learned from there.
    """

    pairs = True

    def __init__(self, config, novelty=16.0, **options):
        super().__init__(config, on="block", drop=True, merge=True, novelty=novelty, **options)
        if self.novelty is None:
            raise ValueError("novelty of a merge gate must be above 0: it merges by similarity, got 0")

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        """As in `Gate`, an `Action` that says `into`, too."""
        found = match(tokens, state, self.protected)
        logits = self.logits(tokens, state, found)
        keep = self.decide(logits, gating, exploration) if replay is None else replay
        return Action(keep, into=found.into(tokens.shape[1]))

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        tokens, num_tokens = tokens.detach(), tokens.shape[1]
        found = match(tokens, state, self.protected)
        logits = self.logits(tokens, state, found)
        action = self.drawn(tokens, logits, found.leaving(num_tokens), replay, exploration)
        return action._replace(into=found.into(num_tokens))

    def logits(self, tokens, state=UNTOUCHED, found=None):
        """As in `LearnedGate`; found: the `Matching` of these tokens, if that is known."""
        found = match(tokens, state, self.protected) if found is None else found
        scores = found.of(self.score(tokens).squeeze(-1)).float()  # (B, A)
        logits = torch.addcmul(scores, self.novelty.weight.float(), found.distance)
        return found.spread(logits, logits.new_full(tokens.shape[:2], KEPT))  # (B, N)

    def settle(self, keep):
        return keep  # the logits keep what may not leave

    def decidable(self, tokens, state):
        return match(tokens, state, self.protected).leaving(tokens.shape[1])

    def macs(self, num_tokens, alive=None):
        patches = (num_tokens if alive is None else alive) - count(self.protected, num_tokens)
        return num_tokens * self.score.in_features + matching_macs(patches, self.score.in_features)
