"""Compaction: tokens that are dropped leave the stream itself, so that no later layer steps over them.

With several images the stream is as long as the fullest of them is; in the others dropped tokens stay at the end.

Letters: B images, M tokens of the full stream, N of the stream before, K after, D channels, S numbers per token.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .decisions import Places, TokenState
from .merging import departures, itself, move
from .rows import UsedRows, padding_of


class Taken(NamedTuple):
    """The rows of a stream that stay, before they are put into the stream without the others."""

    rows: torch.Tensor  # (T + padding, D)
    used: UsedRows  # which rows of the new stream they are
    shape: tuple  # (B, K)

    def stream(self, rows, empty=0.0):
        """The new stream (B, K, D), of rows (T + padding, D); `empty` where an image has fewer than others."""
        rows = rows[: self.used.total]
        if self.used.index is not None:
            empty = rows.new_full((self.shape[0] * self.shape[1], rows.shape[1]), empty)
            rows = empty.index_copy_(0, self.used.index, rows)
        return rows.view(*self.shape, rows.shape[1])


def take_out(x, keep, into, state, rounded, weighs=True):
    """Take tokens out of the stream, and merge them into others on the way.

    Args:
        x: (B, N, D). state: its `TokenState`. keep: bool (B, N), those alive that stay.
        into: int64 (B, N) where each token goes if it leaves; itself: nowhere. None: none merges.
        rounded: pad to a rounded number of rows.
        weighs: whether tokens that take on others stand for as many patches more.

    Returns:
        `Taken`, None if all stay; the `TokenState` of the new stream; and `into` of those that leave alone. The order of
        tokens is as it was.
    """
    batch, num_tokens = keep.shape
    into = None if into is None else departures(keep, into, state.alive)
    kept = keep.flatten().nonzero().squeeze(1)  # (T,)
    total = len(kept)
    if total == keep.numel():
        return None, state, into
    lengths = [total] if batch == 1 else keep.sum(1).tolist()
    shape, padding = (batch, max(lengths)), padding_of(total) if rounded else 0
    rows = x.flatten(0, 1).index_select(0, F.pad(kept, (0, padding)) if padding else kept)
    gone = () if into is None else (into != itself(into)).flatten().nonzero().squeeze(1)
    before = size = None if state.size is None else state.size.flatten()
    if len(gone):
        size = torch.ones(keep.numel(), device=x.device) if size is None else size
        place = into.flatten().index_select(0, gone)
        if batch > 1:
            place = place + gone - gone % num_tokens
        source, amount = x.flatten(0, 1).index_select(0, gone), size.index_select(0, gone)
        rows, size = move(source, torch.searchsorted(kept, place), amount, rows, size.index_select(0, kept))
    if before is not None and not (len(gone) and weighs):
        size = before.index_select(0, kept)
    elif not weighs:
        size = None
    left, slots = None, None
    if min(lengths) < shape[1]:
        left = torch.arange(shape[1], device=x.device) < torch.tensor(lengths, device=x.device).unsqueeze(1)
        slots = left.flatten().nonzero().squeeze(1)
    taken = Taken(rows, UsedRows.of(slots, padding, lengths, total, x.device), shape)
    size = None if size is None else taken.stream(size.unsqueeze(1), 1.0).squeeze(-1)

    def moved(values):
        """What belongs to each token, (B, N) or (B, N, S), in the new stream."""
        if values is None:
            return None
        rows = values.flatten(0, 1).index_select(0, kept).view(total, -1)
        return taken.stream(rows).view(*shape, *values.shape[2:])

    places = _places(state.places, keep, kept, left, shape)
    known = (moved(values) for values in (state.attention, state.values, state.halting))
    return taken, TokenState(left, size, moved(state.side), places, *known), into


def _places(before, keep, kept, left, shape):
    """`Places` of the tokens that a stream keeps: bool (B, N), the T of them, and which of (B, K) there are; None: all."""
    if left is None:
        index = (kept if len(keep) == 1 else kept % keep.shape[1]).view(shape)
    else:  # and others at the end, each once
        index = keep.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : shape[1]]
    if before is not None and len(keep) == 1:  # for what it costs
        index = before.index.index_select(1, index[0])
    elif before is not None:
        index = before.index.gather(1, index)
    num_tokens = keep.shape[1] if before is None else before.alive.shape[1]
    alive = torch.zeros(len(keep), num_tokens, dtype=torch.bool, device=keep.device)
    return Places(index, alive.scatter_(1, index, True if left is None else left))


def in_full(decision, before, after):
    """`LayerDecisions` made in a compacted stream, in the places of the full one.

    Args:
        before, after: the `TokenState` before and after the layer.
    """
    if before.places is None and after.places is None:
        return decision
    places, alive = before.places, after.places.alive

    def spread(keep):
        # Tokens that were taken out in this layer are in neither sub-layer.
        if keep is None or keep is before.alive or after.places is not places:
            return alive
        return torch.zeros_like(alive).scatter(1, places.index, keep > 0.5)

    into = decision.into
    if into is not None and places is not None:
        full = itself(alive).repeat(len(into), 1)
        into = full.scatter_(1, places.index, places.index.gather(1, into))
    attention = spread(decision.attention_tokens)
    mlp = attention if decision.mlp_tokens is decision.attention_tokens else spread(decision.mlp_tokens)
    return decision._replace(attention_tokens=attention, mlp_tokens=mlp, into=into)
