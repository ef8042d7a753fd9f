"""The merging gate: ToMe's bipartite matching in every layer, with a threshold per token in place of a number for all.

Letters: B images, N tokens, D channels, A of them that may leave.
"""

import torch

from .cascade import in_look
from .decisions import UNTOUCHED, Action
from .gate import NO_EXPLORATION, Score, cut
from .gate_patch import PatchGate
from .kernels import kernels
from .matching import alive_come_first, count, match, matching_macs
from .options import check_options


KEPT = 1e4  # logit of a token that may not leave, beyond any shift of the thresholds
NEAR = 0.03  # distance above which its logarithm counts; below, tokens are as good as equal


class MergeGate(PatchGate):
    """Every second patch token may leave for its most similar partner among the others (ToMe, Bolya et al., 2023, 3.1).

    ToMe merges the r most similar pairs of each layer, the same r for every image (gate `tome`). Here a pair merges where
    its logit falls below the threshold: how many do so is the image's doing, and the score, at 0 until it learns, says
    which tokens must not leave however similar they are. With d = 1 - cosine of the normed tokens the logit is
    `score(token) + distance * log(1 + d / 0.03)`; with the score a log-saliency (training/importance.py) that is a product
    of what depends on the token and a power of how far it moves.

    Args:
        distance: the weight of the logarithm at first; learned from there. None: the logit is linear in d instead.
        novelty: the weight of d at first where there is no distance; None: 16.
        merged: how many pairs merge in every image, those of the least logit, or all where there are fewer (`fix_merges`,
            training/fixed.py); no threshold counts then. A list has a number for each look of a cascade. None: those below
            the threshold.
    """

    pairs = True

    def __init__(self, config, novelty=None, distance=None, merged=None, **options):
        if novelty is not None and distance is not None:
            raise ValueError(
                f"a merge gate has a distance or a novelty: got distance {distance!r}, novelty {novelty!r}"
            )
        linear = 0.0 if distance is not None else 16.0 if novelty is None else novelty
        super().__init__(config, on="block", drop=True, merge=True, novelty=linear, **options)
        self.distance, self.merged = None, merged
        if merged is not None:
            for count in merged if isinstance(merged, list) else [merged]:
                check_options("a merge gate", merged=count)
        if distance is not None:
            check_options("a merge gate", distance=distance)
            self.distance = Score(1, 1, None, init_weight=distance)
        elif self.novelty is None:
            raise ValueError("novelty of a merge gate must be above 0: it merges by similarity, got 0")

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        """As in `Gate`, an `Action` that says `into`, too."""
        own = type(self) is MergeGate and self.merged is None  # a class that derives from it may decide otherwise
        fast = kernels(tokens) if own and gating == "threshold" and replay is None else None
        if fast is not None and alive_come_first(state, self.protected):
            keep, into = self._by_kernel(fast, tokens, exploration.shift, state.alive)
            return Action(keep, into=into)
        found = match(tokens, state, self.protected)
        logits = self.logits(tokens, state, found)
        keep = self.decide(logits, gating, exploration) if replay is None else replay
        return Action(keep, into=found.into(tokens.shape[1]))

    def _by_kernel(self, fast, tokens, shift, alive):
        """keep and `into` (B, N), each in one call."""
        weight, near = (self.novelty.weight, 0.0) if self.distance is None else (self.distance.weight, NEAR)
        each, add = (shift.float(), 0.0) if torch.is_tensor(shift) else (None, shift or 0.0)
        first, scores = self.protected.stop, self.score(tokens)
        return fast.pairs(tokens, scores, alive, first, weight, near, each, add, cut(self.threshold))

    def decide(self, logits, gating, exploration):
        """As in `LearnedGate`, of logits (B, N) or (B, A); with `merged` whatever the gating and the shift."""
        if self.merged is None:
            return super().decide(logits, gating, exploration)
        least = logits.argsort(1)[:, : in_look(self.merged, exploration.look)]
        return torch.ones_like(logits, dtype=torch.bool).scatter(1, least, False) | logits.isposinf()

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        if self.merged is not None:  # nothing is drawn
            return self(tokens.detach(), "threshold", replay, exploration, state)
        tokens, num_tokens = tokens.detach(), tokens.shape[1]
        found = match(tokens, state, self.protected)
        logits = self.logits(tokens, state, found)
        action = self.drawn(tokens, logits, found.leaving(num_tokens), replay, exploration)
        return action._replace(into=found.into(num_tokens))

    def logits(self, tokens, state=UNTOUCHED, found=None):
        """As in `LearnedGate`; found: the `Matching` of these tokens, if that is known."""
        found = match(tokens, state, self.protected) if found is None else found
        scores = found.of(self.score(tokens).squeeze(-1)).float()  # (B, A)
        if self.distance is None:
            logits = torch.addcmul(scores, self.novelty.weight.float(), found.distance)
        else:
            logits = torch.addcmul(scores, self.distance.weight.float(), torch.log1p(found.distance / NEAR))
        if self.merged is not None:
            logits = logits if found.there is None else logits.masked_fill(~found.there, torch.inf)
            return found.spread(logits, logits.new_full(tokens.shape[:2], torch.inf))
        return found.spread(logits, logits.new_full(tokens.shape[:2], KEPT))  # (B, N)

    def settle(self, keep):
        return keep  # the logits keep what may not leave

    def decidable(self, tokens, state):
        return match(tokens, state, self.protected).leaving(tokens.shape[1])

    def macs(self, num_tokens, alive=None):
        tokens = num_tokens if alive is None else alive
        patches = tokens - count(self.protected, num_tokens)
        return tokens * self.score.in_features + matching_macs(patches, self.score.in_features)
