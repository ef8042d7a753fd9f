"""What is decided of a layer, and of the tokens that enter it: values that gates, layers and the encoder pass on.

Letters: B images, N tokens, M tokens of the full stream, H heads, S numbers per token.
"""

from typing import NamedTuple

import torch


class LayerDecisions(NamedTuple):
    """What one layer runs, for B images of N tokens and H heads; `None` keeps everything.

    A bool says keep or not; a float is the same as 0.0 or 1.0 and carries the straight-through gradient. The last
    three come with `gating="act"` alone, as sums over the units that the layer decided.
    """

    attention_tokens: torch.Tensor | None = None  # (B, N) tokens that take part in attention
    mlp_tokens: torch.Tensor | None = None  # (B, N) tokens that the MLP transforms
    heads: torch.Tensor | None = None  # (B, H)
    sublayers: torch.Tensor | None = None  # (B, 2) attention, MLP
    into: torch.Tensor | None = None  # (B, N) the token that takes on each one dropped permanently; itself: none

    log_prob: torch.Tensor | None = None  # (B,) of what was drawn or replayed, with gradient
    entropy: torch.Tensor | None = None  # (B,) of the policy, nats
    value: torch.Tensor | None = None  # (B,) the return that the layer expects

    def keeps(self):
        """The decisions that say keep or not, by name, without those that are None."""
        return {slot: keep for slot in KEEPS if (keep := getattr(self, slot)) is not None}


KEEPS = ("attention_tokens", "mlp_tokens", "heads", "sublayers")


class Places(NamedTuple):
    """Where the N tokens of a compacted stream were in the full one of M tokens."""

    index: torch.Tensor  # int64 (B, N)
    alive: torch.Tensor  # bool (B, M), tokens of the full stream that are still there


class TokenState(NamedTuple):
    """What is known of each token beside its channels, most of it what earlier layers have done permanently."""

    alive: torch.Tensor | None = None  # (B, N) not dropped; None: all
    size: torch.Tensor | None = None  # (B, N) patches that a token stands for; None: one each
    side: torch.Tensor | None = None  # (B, N, S), what the host knows; None: nothing
    places: Places | None = None  # of a compacted stream, where those alive come first; None: nothing was taken out
    # What the last layer that was asked to, and that ran, has noted (cls_attention.py); None: no gate reads it.
    attention: torch.Tensor | None = None  # (B, N), how much [CLS] attends to each token
    values: torch.Tensor | None = None  # (B, N), length of its values
    halting: torch.Tensor | None = None  # (B, N), what gates `halting` of earlier layers have added up; None: nothing


UNTOUCHED = TokenState()


def patches_there(tokens, state, protected):
    """Bool (B, N): the patch tokens that are alive, of tokens (B, N, ...); protected ones are none."""
    there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    there[:, protected] = False
    return there if state.alive is None else there & (state.alive > 0.5)


class Action(NamedTuple):
    """What a gate does for B images; log_prob, entropy and value (B,) come from policies alone, as in `LayerDecisions`."""

    keep: torch.Tensor  # (B, units)
    log_prob: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    value: torch.Tensor | None = None
    # Of a gate that `pairs`: int64 (B, N), the token, one that stays, that each one would leave for; itself: none.
    into: torch.Tensor | None = None
    halting: torch.Tensor | None = None  # (B, N), for the `TokenState` of the layers that follow


def as_action(found):
    """What `forward` of a gate has found, as an `Action`."""
    return found if isinstance(found, Action) else Action(found)


def with_policy(decisions, actions):
    """The decisions with the sums of the policies' log-probabilities and entropies, and the mean of their values."""
    actions = [action for action in actions.values() if action.log_prob is not None]
    if not actions:
        return decisions
    values = [action.value for action in actions if action.value is not None]
    return decisions._replace(
        log_prob=sum(action.log_prob for action in actions),
        entropy=sum(action.entropy for action in actions),
        value=sum(values) / len(values) if values else None,
    )
