"""The contract of gates, and how logits become a decision: sampled, acted, or thresholded.

Letters: B images, N tokens, D channels, H heads.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from .decisions import UNTOUCHED, Action, as_action
from .host import CLS
from .options import check_options


# How a forward decides. sample: stochastic, straight-through; act: stochastic, with log-probabilities for policy
# gradients; threshold: deterministic; open: keep everything.
GATINGS = ("sample", "act", "threshold", "open")


class Exploration(NamedTuple):
    """How decisions are drawn where they are stochastic, and the budget and look that they are for."""

    noise: float = 1.0  # scale of the Gumbel noise of straight-through samples; at 0 they are thresholded
    bound: float = 1.0  # a policy keeps with bound * p + (1 - bound) * (1 - p), to go on exploring (BlockDrop)
    from_layer: int = 0  # policies of earlier layers keep everything (a curriculum from the last layer backwards)
    # Added to the logits of every learned gate: a number, or (B,); None: what the model's budget asks for (budgets.py).
    shift: float | torch.Tensor | None = None
    look: int = -1  # of a cascade, counted from 0 or from the end: the forward's own, whatever is given


NO_EXPLORATION = Exploration()


def draw(logits, bound=1.0, keep=None, valid=None):
    """Independent keep-or-skip draws of a policy, or the probability of given ones.

    Args:
        logits: (B, units); a unit is kept with probability sigmoid(logit), bounded as in `Exploration`.
        keep: (B, units) to score instead of drawing.
        valid: bool (B, units), units that are the policy's to decide; the others do not count.

    Returns:
        keep bool (B, units), log_prob (B,), entropy (B,).
    """
    on, off = torch.sigmoid(logits), torch.sigmoid(-logits)
    on, off = bound * on + (1 - bound) * off, bound * off + (1 - bound) * on
    keep = torch.rand_like(on) < on if keep is None else keep > 0.5
    log_on, log_off = on.clamp(min=1e-12).log(), off.clamp(min=1e-12).log()
    log_prob, entropy = torch.where(keep, log_on, log_off), -(on * log_on + off * log_off)
    if valid is not None:
        log_prob, entropy = log_prob * valid, entropy * valid
    return keep, log_prob.sum(1), entropy.sum(1)


def cut(threshold):
    """The logit above which evaluation keeps: that of the threshold, whatever the temperature, as published. Of a rate: at
    which that share is sampled."""
    return math.log(threshold / (1 - threshold))


def sample_straight_through(logits, tau, threshold, noise=1.0):
    """Gumbel-sigmoid with a hard forward and a soft backward (AdaViT, Eq. 5).

    The published code has two rules: at noise 1 a sample exceeds the threshold where logit + noise > tau * cut, with
    probability sigmoid(logit - tau * cut); in evaluation a unit is kept where logit > cut. They differ unless tau is 1
    or the threshold 0.5. Between noise 1 and 0 the first turns into the second: logit + noise > (1 + noise * (tau - 1))
    * cut. The temperature `tau` of the relaxation scales the gradient only when the threshold is 0.5.

    Returns:
        Floats of the shape of `logits`, exactly 0.0 or 1.0.
    """
    logits = logits.float()
    # The difference of two Gumbel variables is logistic.
    uniform = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
    relaxed = logits + noise * torch.logit(uniform)
    lowered = (1 - noise) * (tau - 1) * cut(threshold)
    soft = torch.sigmoid((relaxed + lowered) / tau)
    # By the logit: rounding on the way to the sigmoid must not tell a sample without noise from evaluation.
    hard = (relaxed > (1 + noise * (tau - 1)) * cut(threshold)).float()
    return hard + (soft - soft.detach())


def shifted(logits, shift):
    """Logits (B, units) with the `shift` of an `Exploration`; not added in 16 bit, which would be coarse beside it."""
    if shift is None:
        return logits
    return logits.float() + (shift.unsqueeze(1) if torch.is_tensor(shift) else shift)


class Score(nn.Linear):
    """A linear map from features to logits that is `init_weight` everywhere and `init_bias` (None: no bias) when fresh.

    With an `init_std` its weights are drawn around `init_weight`, the same in every layer and at every start.
    """

    def __init__(self, in_features, out_features, init_bias, init_weight=0.0, init_std=0.0):
        super().__init__(in_features, out_features, bias=init_bias is not None)
        self.init_bias, self.init_weight, self.init_std = init_bias, init_weight, init_std

    def fresh(self):
        """The weights (units, F) before anything has moved them, float32."""
        weights = torch.full(self.weight.shape, float(self.init_weight))
        if self.init_std:
            weights += self.init_std * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
        return weights


class Gate(nn.Module):
    """Sits on one layer and decides one kind of unit: the contract, which learned gates fulfil by a score.

    Subclasses take `(config, **options)`, set `slots` and define `forward`. Fresh, a gate that learns keeps everything.
    Gates of tokens are asked with the tokens after the sub-layer's LayerNorm, others with those entering the block.
    """

    slots: tuple[str, ...] = ()  # fields of `LayerDecisions` that it fills
    drop = False  # whether tokens that are not kept are gone for later layers too
    merge = False  # and leave their content to the kept token most like them
    weighs = True  # and who takes on others counts in attention as often as it has patches
    pairs = False  # or to another kept token, which its `Action` names
    upfront = False  # whether it reads the tokens that entered the first gate of its kind
    reads_all = False  # whether a decision depends on tokens that are gone, or on how many there are
    reads_attention = False  # whether it reads `attention` of the `TokenState`, which the layer before then notes
    reads_values = False  # and `values`
    whole = False  # whether attention and MLP are always decided alike
    hides_channels = False  # whether heads that are off also hide their channels from the MLP
    protected = CLS  # tokens that are always kept, as the host says

    def __init__(self):
        super().__init__()
        self.bypass = None  # what is added where it skips (bypass.py); its parameters are taught as the body's are

    def deciding_parameters(self):
        """The parameters that its decisions come from."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("bypass.")]

    def pool(self, tokens):
        """tokens (B, N, D) -> (B, D), what a gate with `upfront` reads, as a stream of one token."""
        return tokens[:, 0]

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        """tokens (B, N, D) -> keep (B, units): bool, or float with a straight-through gradient when sampled.

        Args:
            gating: one of `GATINGS` but "open". replay: (B, units) to return instead.
            state: the `TokenState` of the tokens, for gates of tokens; others are not told.

        Returns:
            keep, or an `Action` with it: a gate that `pairs` says `into`, too.
        """
        raise NotImplementedError

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        """An `Action`: what `forward` keeps, without a log-probability unless a policy draws."""
        return as_action(self(tokens, "threshold", replay, exploration, state))

    def macs(self, num_tokens, alive=None):
        """Multiply-accumulates of one image with `num_tokens` tokens, of which `alive` are still there (None: all)."""
        return 0


class LearnedGate(Gate):
    """A gate whose `logits` come from a score, which training moves: keep where a logit exceeds that of the threshold.

    Args:
        value_width: hidden width of the network that predicts the return from `pool`, the baseline of policy gradients;
            0: none.
    """

    def __init__(self, in_features, units, init_bias=3.0, tau=1.0, threshold=0.5, value_width=0):
        super().__init__()
        check_options("a gate", init_bias=init_bias, tau=tau, threshold=threshold, value_width=value_width)
        self.score = Score(in_features, units, init_bias)
        self.tau, self.threshold = tau, threshold
        self.value = None
        if value_width:
            self.value = nn.Sequential(nn.Linear(in_features, value_width), nn.ReLU(), nn.Linear(value_width, 1))

    def logits(self, tokens, state=UNTOUCHED):
        """tokens (B, N, D), of which `state` says more for gates of tokens -> (B, units)."""
        raise NotImplementedError

    def settle(self, keep):
        """What is kept (B, units of the slot), given what the logits (B, units) say."""
        return keep

    def decidable(self, tokens, state):
        """Bool (B, units) that are the policy's to decide; None: all. The others are kept, without a log-probability."""
        return None

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        logits = self.logits(tokens, state)
        return self.decide(logits, gating, exploration) if replay is None else replay

    def act(self, tokens, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        """An `Action`: drawn, or `replay` (B, units) scored. No gradient enters the tokens."""
        tokens = tokens.detach()
        return self.drawn(tokens, self.logits(tokens, state), self.decidable(tokens, state), replay, exploration)

    def decide(self, logits, gating, exploration):
        """What is kept (B, units of the slot) by logits (B, units): sampled, or thresholded."""
        logits = shifted(logits, exploration.shift)
        if gating == "sample":
            return self.settle(sample_straight_through(logits, self.tau, self.threshold, exploration.noise))
        # What is not a number is kept, and so shows in the logits of the model as it does in those of a plain ViT.
        return self.settle(~(logits <= cut(self.threshold)))

    def drawn(self, tokens, logits, decidable, replay, exploration):
        """The `Action` of a policy with these logits (B, units)."""
        logits = shifted(logits, exploration.shift).float() - cut(self.threshold)
        replay = None if replay is None else replay[:, : logits.shape[1]]
        keep, *policy = draw(logits, exploration.bound, replay, decidable)
        # A copy: the gradient of `policy` reads keep as it was. A bounded policy draws against any logit, however high.
        keep = keep.clone() if decidable is None else keep | ~decidable
        value = None if self.value is None else self.value(self.pool(tokens)).float().squeeze(1)
        return Action(self.settle(keep), *policy, value)

    def macs(self, num_tokens, alive=None):
        return self.score.in_features * self.score.out_features
