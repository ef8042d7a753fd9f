"""Gates of tokens."""

from .decisions import UNTOUCHED, patches_there
from .gate import LearnedGate, Score
from .novelty import novelty, novelty_macs
from .options import check_choice, check_options


class PatchGate(LearnedGate):
    """AdaViT's patch gate: a token's normed state, and on request its novelty, decide whether the layer transforms it.

    `Linear(D, 1)` on every normed token (section 3.2); protected tokens, [CLS], are always kept.

    Args:
        on: `"block"`: one decision, read before attention, for attention and MLP (AdaViT); `"attention"` or `"mlp"`:
            for that sub-layer alone, read at its own entrance.
        drop: tokens that are not kept are gone for all later layers too (as in DynamicViT), instead of passing this
            layer unchanged and coming back.
        merge: before they are gone, the kept tokens most like them take on their content (merging.py).
        novelty: what a token's novelty (novelty.py) counts in its logit at first; learned from there. 0: not at all.
    """

    SLOTS = {
        "block": ("attention_tokens", "mlp_tokens"),
        "attention": ("attention_tokens",),
        "mlp": ("mlp_tokens",),
    }

    def __init__(self, config, on="block", drop=False, merge=False, novelty=0.0, **options):
        check_choice("a patch gate", "on", on, self.SLOTS)
        check_options("a patch gate", drop=drop, merge=merge, novelty=novelty)  # novelty < 0: not open when fresh
        super().__init__(config.hidden_size, 1, **options)
        if drop and on != "block":
            raise ValueError(f'a patch gate drops tokens from a whole block: drop=True needs on="block", got {on!r}')
        if merge and not drop:
            raise ValueError("a patch gate merges what it drops permanently: merge=True needs drop=True")
        self.slots, self.drop, self.merge = self.SLOTS[on], drop, merge
        # One number, held by a module whose fresh value `_init_weights` knows.
        self.novelty = Score(1, 1, None, init_weight=novelty) if novelty else None

    def logits(self, tokens, state=UNTOUCHED):
        logits = self.score(tokens).squeeze(-1)  # (B, N)
        if self.novelty is None:
            return logits
        # Not in 16 bit, which would be coarse beside the distance of two tokens' novelties.
        return logits.float() + self.novelty.weight.float().squeeze() * novelty(tokens, state.alive, self.protected)

    def settle(self, keep):
        keep = keep.clone()  # the log-probability of a policy holds what was drawn
        keep[:, self.protected] = True
        return keep

    def decidable(self, tokens, state):
        return patches_there(tokens, state, self.protected)

    def macs(self, num_tokens, alive=None):
        macs = num_tokens * super().macs(num_tokens)
        if self.novelty is not None:
            macs = macs + novelty_macs(num_tokens if alive is None else alive, self.score.in_features)
        return macs
