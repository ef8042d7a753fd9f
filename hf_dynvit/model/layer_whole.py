"""Layers that run whole, or are skipped whole: what can be told before any token is looked at.

Letters: B images, N tokens, D channels, S numbers per token.
"""

import torch

from .decisions import TokenState
from .layer_packed import packed_block


def runs_whole(gates, seen):
    """Whether nothing is decided here and nothing was before: the layer is the host's, for all tokens of all images."""
    replay, state = seen.replay, seen.state
    if seen.notes or state.size is not None or (gates and seen.gating != "open"):
        return False
    if replay is not None:
        return not replay.keeps() and replay.into is None
    return state.alive is None and all(seen.allowed)


def skips_whole_images(gates, replay, state):
    """Whether the only question is which images run this layer, attention and MLP alike."""
    if (
        set(gates) != {"sublayers"}
        or not gates["sublayers"].whole
        or state.alive is not None
        or state.size is not None
    ):
        return False
    if replay is None:
        return True
    if set(replay.keeps()) != {"sublayers"} or replay.into is not None:
        return False
    attention, mlp = (replay.sublayers > 0.5).unbind(1)
    return torch.equal(attention, mlp)


def run_images(parts, x, images, side):
    """x (B, N, D) after the layer for images (B',), and as it was for the others: one gather for the block."""
    if not len(images):
        return x
    if len(images) == len(x):
        return packed_block(parts, x, None, None, None, None, TokenState(side=side))[0]
    some = None if side is None else side.index_select(0, images)
    part, _ = packed_block(parts, x.index_select(0, images), None, None, None, None, TokenState(side=some))
    return x.index_copy(0, images, part)
