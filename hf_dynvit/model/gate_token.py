"""The gate `token`: a scorer puts the tokens in order, an amount says how many stay, and the rest leaves in one of four ways.

The rival methods of the literature are points on these three axes (presets in gates.py). What differs from all of them:
tokens leave before the attention of a layer, not between its attention and its MLP; where attention is read, it is that of
the layer before; and kept tokens that others merge into count in attention as often as they have patches.

Letters: B images, N tokens, D channels, F numbers per token.
"""

import torch

from .amounts import AMOUNTS, ranking, share_before
from .decisions import UNTOUCHED, Action, patches_there
from .gate import NO_EXPLORATION, Gate, LearnedGate, Score, cut
from .gate_patch import PatchGate
from .host import host_of
from .options import check_choice, check_options
from .scorers import SCORERS


OPEN_BY_RANK = 10.0  # beyond the logit of the last of ten thousand tokens
RESTS = ("drop", "merge", "fuse", "pass")


class TokenGate(Gate):
    """The tokens that a scorer finds most important stay.

    Args:
        score: the scorer, a name on the shelf of scorers.py.
        keep, top, mass, samples, threshold: how many stay, exactly one of them: a rate of the patches that are there; a
            number of patches; the fewest whose scores sum to that share of all; those that so many points of the inverse
            distribution of the scores hit; or those whose logit, `scale * score` plus a bias that calibration shifts,
            exceeds that of the threshold.
        rest: what becomes of the others: `"drop"`: gone permanently; `"merge"`: into the kept token most like each
            (merging.py); `"fuse"`: all into the best of them, which stays for them (EViT); `"pass"`: they pass this layer
            unchanged and come back.

    With `threshold`, or a scorer that learns, it is a `LearnedTokenGate`.
    """

    slots = ("attention_tokens", "mlp_tokens")

    def __new__(cls, config=None, score="cls_attention", threshold=None, **options):
        learned = threshold is not None or getattr(
            SCORERS.get(score) if isinstance(score, str) else None, "learns", False
        )
        return super().__new__(LearnedTokenGate if learned else cls)

    def __init__(self, config, score="cls_attention", rest="drop", keep=None, top=None, mass=None, samples=None):
        super().__init__()
        self._assemble(config, score, rest, {"keep": keep, "top": top, "mass": mass, "samples": samples})

    def _assemble(self, config, score, rest, amounts):
        """Take the three options that make a gate; `amounts`: name -> number or None, of which one is given."""
        check_choice("a token gate", "score", score, SCORERS)
        check_choice("a token gate", "rest", rest, RESTS)
        given = {name: number for name, number in amounts.items() if number is not None}
        if len(given) != 1:
            raise ValueError(f"a token gate takes exactly one of {sorted([*AMOUNTS, 'threshold'])}, got {given}")
        check_options("a token gate", **given)
        ((self.amount, self.number),) = given.items()
        self.scorer = SCORERS[score](config)
        if self.scorer.learns and self.amount in ("mass", "samples"):
            raise ValueError(
                f"{self.amount} of a token gate needs scores of at least 0, which {score!r} does not give: take keep, top or "
                "threshold"
            )
        self.protected = self.scorer.protected = host_of(config).index()
        self.drop, self.merge, self.pairs = rest != "pass", rest in ("merge", "fuse"), rest == "fuse"
        self.weighs = rest == "merge"  # the token of the rest counts once (EViT)
        self.reads_all = self.scorer.reads_all
        self.reads_attention, self.reads_values = self.scorer.reads_attention, self.scorer.reads_values

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        scores = self.scorer.score(tokens, state).detach().float()
        keep = self.chosen(scores, state) if replay is None else replay
        return self.with_rest(keep, scores, state)

    def chosen(self, scores, state):
        """Bool (B, N): the tokens that the amount keeps by scores (B, N), and the protected ones."""
        there = patches_there(scores, state, self.protected)
        # What is not a number is kept, and so shows in the logits of the model.
        stays = AMOUNTS[self.amount](scores, there, self.number) | (there & scores.isnan())
        stays[:, self.protected] = True
        return stays

    def with_rest(self, keep, scores, state):
        """An `Action` that keeps (B, N), and whom the others leave for, if they fuse."""
        if not self.pairs:
            return Action(keep)
        itself = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        free = patches_there(scores, state, self.protected)
        leaves = free & ~(keep > 0.5)
        some = leaves.any(1, keepdim=True)
        best = torch.where(some, ranking(scores, leaves)[:, :1], itself)  # (B, N)
        keep = torch.where(some & (itself == best), torch.ones_like(keep), keep)
        return Action(keep, into=torch.where(free, best, itself))

    def macs(self, num_tokens, alive=None):
        return self.scorer.macs(num_tokens if alive is None else alive)


class LearnedTokenGate(TokenGate, LearnedGate):
    """A `TokenGate` that keeps by a threshold of its logit, which calibration and training move, or by a score that learns.

    The logit is a linear map of what the scorer gives, `scale * score` at first where that learns nothing; while gates
    learn, tokens are sampled by it, one by one. In evaluation the amount counts: with `keep`, `top`, ... the best logits
    stay (DynamicViT), as many as it says from the start; with `keep`, sampling begins with as many, too.

    Args:
        scale: what a score counts in the logit at first, where the scorer gives one number; None: 16, or by rank 1.
        by_rank: a token's place in the order of its image counts instead of its score, as the logit of the share of tokens
            before it: as many stay in every image, at a rate that is learned or calibrated for each layer (after DiffRate,
            Chen et al., 2023).
        options: those of `LearnedGate`.
    """

    def __init__(
        self,
        config,
        score="cls_attention",
        rest="drop",
        keep=None,
        top=None,
        mass=None,
        samples=None,
        threshold=None,
        scale=None,
        by_rank=False,
        **options,
    ):
        scale = (1.0 if by_rank else 16.0) if scale is None else scale
        check_options("a token gate", scale=scale, by_rank=by_rank)
        options = options if threshold is None else {"threshold": threshold, **options}
        options = {"init_bias": OPEN_BY_RANK, **options} if by_rank else options
        if keep is not None:  # as many as in evaluation, from the start
            check_options("a token gate", keep=keep)
            options = {"init_bias": cut(min(keep, 1 - 1e-4)), **options}
        LearnedGate.__init__(self, 1, 1, **options)
        amounts = {"keep": keep, "top": top, "mass": mass, "samples": samples, "threshold": threshold}
        self._assemble(config, score, rest, amounts)
        if by_rank and (self.scorer.learns or threshold is None):
            raise ValueError(
                "by_rank of a token gate needs a threshold, and a score that learns nothing: no gradient passes an order, got "
                f"score {score!r}, threshold {threshold!r}"
            )
        self.by_rank = by_rank
        width, bias = self.scorer.width, self.score.init_bias
        self.score = Score(width, 1, bias, init_weight=scale if width == 1 else 0.0)

    def logits(self, tokens, state=UNTOUCHED):
        found = self.scorer.score(tokens, state)
        if self.scorer.width > 1:
            return self.score(found).squeeze(-1)  # (B, N)
        if self.by_rank:
            found = -share_before(found.detach().float(), patches_there(tokens, state, self.protected)).logit()
        # Not in 16 bit, which would be coarse beside the distance of two scores.
        return found.float() * self.score.weight.float().squeeze() + self.score.bias.float()

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        logits = self.logits(tokens, state)
        if replay is not None:
            keep = replay
        elif gating == "sample" or self.amount == "threshold":
            keep = self.decide(logits, gating, exploration)
        else:
            keep = self.chosen(logits.detach().float(), state)
        return self.with_rest(keep, logits.detach().float(), state)

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        tokens = tokens.detach()
        logits = self.logits(tokens, state)
        policy = (tokens, logits, self.decidable(tokens, state))
        action = self.drawn(*policy, replay, exploration)
        if replay is not None or not self.pairs:
            return action
        fused = self.with_rest(action.keep, logits.detach().float(), state)
        return self.drawn(*policy, fused.keep, exploration)._replace(into=fused.into)

    settle, decidable = PatchGate.settle, PatchGate.decidable

    def macs(self, num_tokens, alive=None):
        tokens, width = num_tokens if alive is None else alive, self.scorer.width
        return super().macs(num_tokens, alive) + (tokens * width if width > 1 else 0)
