"""Compaction: tokens that are dropped leave the stream itself, so that no later layer steps over them.

With several images the stream is as long as the fullest of them is; in the others dropped tokens stay at the end.

Letters: B images, M tokens of the full stream, N of the stream before, K after, D channels, S numbers per token.
"""

import torch

from .gate import Places, TokenState
from .merging import flat_rows, itself, move


def take_out(x, keep, into, state):
    """Take tokens out of the stream, and merge them into others on the way.

    Args:
        x: (B, N, D). state: its `TokenState`. keep: bool (B, N), those alive that stay.
        into: int64 (B, N) where each token goes if it leaves; itself: nowhere. None: none merges.

    Returns:
        x (B, K, D), its `TokenState`, and `into` of those that leave alone; the order of tokens is as it was.
    """
    (batch, num_tokens), here = keep.shape, itself(keep)
    into = None if into is None else torch.where(keep, here, into)
    index, left = _kept(keep)
    if left is None and index.shape[1] == num_tokens:  # all stay
        return x, state, into
    rows, longest = flat_rows(index, num_tokens), index.shape[1]
    out = x.flatten(0, 1).index_select(0, rows)
    size = None if state.size is None else state.size.flatten().index_select(0, rows)
    if into is not None and len(gone := (into != here).flatten().nonzero().squeeze(1)):
        place = flat_rows(into, num_tokens).index_select(0, gone)
        if batch == 1:
            place = torch.searchsorted(rows, place)
        else:
            place = flat_rows(keep.cumsum(1) - 1, longest).index_select(0, place)
        if size is None:
            size, amount = x.new_ones(len(rows), dtype=torch.float32), x.new_ones(len(gone), dtype=torch.float32)
        else:
            amount = state.size.flatten().index_select(0, gone)
        out, size = move(x.flatten(0, 1).index_select(0, gone), place, amount, out, size)
    out, size = out.view(batch, longest, -1), None if size is None else size.view(batch, longest)
    side = None if state.side is None else state.side.flatten(0, 1).index_select(0, rows).view(batch, longest, -1)
    return out, TokenState(left, size, side, _places(state.places, index, left, num_tokens)), into


def _kept(keep):
    """The places of tokens that stay, first and in their order: (B, K), and which of these do: bool (B, K); None: all."""
    batch, num_tokens = keep.shape
    if batch == 1:
        return keep.flatten().nonzero().T, None
    if not batch:
        return keep.long(), None
    counts = keep.sum(1)
    least, longest = torch.stack((counts.min(), counts.max())).tolist()
    index = keep.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
    if least == longest:
        return index, None
    return index, torch.arange(longest, device=keep.device) < counts.unsqueeze(1)


def _places(before, index, left, num_tokens):
    """`Places` of the tokens at index (B, K) of a stream with `num_tokens` that had places before, or was the full one."""
    if before is None:
        where = index
    elif len(index) == 1:  # for what it costs
        where = before.index.index_select(1, index[0])
    else:
        where = before.index.gather(1, index)
    num_tokens = num_tokens if before is None else before.alive.shape[1]
    alive = torch.zeros(len(where), num_tokens, dtype=torch.bool, device=where.device)
    return Places(where, alive.scatter_(1, where, True if left is None else left))


def in_full(decision, before, after):
    """`LayerDecisions` made in a compacted stream, in the places of the full one.

    Args:
        before, after: the `TokenState` before and after the layer.
    """
    if before.places is None and after.places is None:
        return decision
    places, alive = before.places, after.places.alive

    def spread(keep):
        if (
            keep is None or keep is before.alive or after.places is not places
        ):  # who drops permanently, drops from both
            return alive
        return torch.zeros_like(alive).scatter(1, places.index, keep > 0.5)

    into = decision.into
    if into is not None and places is not None:
        full = itself(alive).repeat(len(into), 1)
        into = full.scatter_(1, places.index, places.index.gather(1, into))
    attention = spread(decision.attention_tokens)
    mlp = attention if decision.mlp_tokens is decision.attention_tokens else spread(decision.mlp_tokens)
    return decision._replace(attention_tokens=attention, mlp_tokens=mlp, into=into)
