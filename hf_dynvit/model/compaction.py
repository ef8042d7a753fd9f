"""Compaction: tokens that are dropped leave the stream itself, so that no later layer steps over them.

With several images the stream is as long as the fullest of them is; in the others dropped tokens stay at the end.

Letters: B images, M tokens of the full stream, N of the stream before, K after, T that stay, D channels, S numbers per token.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .decisions import Places, TokenState
from .kernels import kernels
from .merging import departures, itself, move
from .rows import OF_ROWS, ROUND_TO, UsedRows, padding_of


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


class Staying(NamedTuple):
    """The tokens of a stream that stay, and what has become of those that leave."""

    kept: torch.Tensor  # int64 (T,), rows of x as flattened to (B * N, D)
    lengths: list  # of each image
    rows: torch.Tensor  # (T + padding, D), with what has merged into them
    size: torch.Tensor | None  # (T,) patches that each stands for, with those; None: nothing has merged, now or before
    places: Places  # of the new stream
    into: torch.Tensor | None  # int64 (B, M), of those that leave alone


def take_out(x, keep, into, state, rounded, weighs=True):
    """Take tokens out of the stream, and merge them into others on the way.

    Args:
        x: (B, N, D). state: its `TokenState`. keep: bool (B, N), those alive that stay.
        into: int64 (B, N) where each token goes if it leaves; itself: nowhere. None: none merges.
        rounded: pad to a rounded number of rows.
        weighs: whether tokens that take on others stand for as many patches more.

    Returns:
        `Taken`, None if all stay; the `TokenState` of the new stream; and `into` (B, M) of those that leave alone, in the
        full stream. The order of tokens is as it was.
    """
    fast = kernels(x)
    stay = _stay(x, keep, into, state, rounded) if fast is None else _stay_fast(fast, x, keep, into, state, rounded)
    if stay is None:
        full = keep if state.places is None else state.places.alive
        return None, state, None if into is None else itself(full).repeat(len(keep), 1)
    kept, lengths, total = stay.kept, stay.lengths, len(stay.kept)
    shape, slots, left = (len(keep), max(lengths)), None, None
    if min(lengths) < shape[1]:
        left = torch.arange(shape[1], device=x.device) < torch.tensor(lengths, device=x.device).unsqueeze(1)
        slots = left.flatten().nonzero().squeeze(1)
    taken = Taken(stay.rows, UsedRows.of(slots, len(stay.rows) - total, lengths, total, x.device), shape)

    def moved(values):
        """What belongs to each token, (B, N) or (B, N, S), in the new stream."""
        if values is None:
            return None
        rows = values.flatten(0, 1).index_select(0, kept).view(total, -1)
        return taken.stream(rows).view(*shape, *values.shape[2:])

    size = stay.size
    if not weighs:
        size = None if state.size is None else state.size.flatten().index_select(0, kept)
    size = None if size is None else taken.stream(size.unsqueeze(1), 1.0).squeeze(-1)
    known = (moved(values) for values in (state.attention, state.values, state.halting))
    return taken, TokenState(left, size, moved(state.side), stay.places, *known), stay.into


def _stay(x, keep, into, state, rounded):
    """The `Staying` of `take_out`, in plain PyTorch; None: all stay."""
    batch, num_tokens = keep.shape
    into = None if into is None else departures(keep, into, state.alive)
    kept = keep.flatten().nonzero().squeeze(1)
    total = len(kept)
    if total == keep.numel():
        return None
    lengths = [total] if batch == 1 else keep.sum(1).tolist()
    padding = padding_of(total) if rounded else 0
    rows = x.flatten(0, 1).index_select(0, F.pad(kept, (0, padding)) if padding else kept)
    gone = () if into is None else (into != itself(into)).flatten().nonzero().squeeze(1)
    size = None if state.size is None else state.size.flatten()
    if len(gone):
        size = torch.ones(keep.numel(), device=x.device) if size is None else size
        place = into.flatten().index_select(0, gone)
        if batch > 1:
            place = place + gone - gone % num_tokens
        source, amount = x.flatten(0, 1).index_select(0, gone), size.index_select(0, gone)
        rows, size = move(source, torch.searchsorted(kept, place), amount, rows, size.index_select(0, kept))
    elif size is not None:
        size = size.index_select(0, kept)
    places = state.places
    into = into if into is None or places is None else _into_full(into, places)
    return Staying(kept, lengths, rows, size, _places(places, keep, kept, lengths), into)


def _into_full(into, places):
    """`into` (B, N) of a stream as that of the full one (B, M)."""
    full = itself(places.alive).repeat(len(into), 1)
    return full.scatter_(1, places.index, places.index.gather(1, into))


def _stay_fast(fast, x, keep, into, state, rounded):
    """The same by kernels.py."""
    before = state.places
    num_tokens, index = (keep.shape[1], None) if before is None else (before.alive.shape[1], before.index)
    steps = (ROUND_TO, OF_ROWS) if rounded else (0, 0)
    rows, size, kept, lengths, index, alive, gone, merged = fast.take_out(
        x, keep, into, state.alive, state.size, index, num_tokens, *steps
    )
    if len(kept) == keep.numel():
        return None
    size = size if merged or state.size is not None else None
    return Staying(kept, lengths, rows, size, Places(index, alive), None if into is None else gone)


def _places(before, keep, kept, lengths):
    """`Places` of the tokens that a stream keeps: bool (B, N), the T of them, and how many of each image."""
    longest, left = max(lengths), None
    if min(lengths) == longest:
        index = (kept if len(keep) == 1 else kept % keep.shape[1]).view(len(keep), longest)
    else:  # and others at the end, each once
        index = keep.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
        left = keep.gather(1, index)
    if before is not None and len(keep) == 1:  # for what it costs
        index = before.index.index_select(1, index[0])
    elif before is not None:
        index = before.index.gather(1, index)
    num_tokens = keep.shape[1] if before is None else before.alive.shape[1]
    alive = torch.zeros(len(keep), num_tokens, dtype=torch.bool, device=keep.device)
    return Places(index, alive.scatter_(1, index, True if left is None else left))


def in_full(decision, before, after):
    """`LayerDecisions` made in a compacted stream, in the places of the full one, where `into` of `take_out` is already.

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

    attention = spread(decision.attention_tokens)
    mlp = attention if decision.mlp_tokens is decision.attention_tokens else spread(decision.mlp_tokens)
    into = decision.into
    if into is not None and into.shape[1] < alive.shape[1]:  # of a gate that merges and takes nothing out
        into = _into_full(into, places)
    return decision._replace(attention_tokens=attention, mlp_tokens=mlp, into=into)
