"""Tokens that leave the stream: patches not chosen, dropped tokens that merge into others, compacted storage.

Merging is that of ToMe (Bolya et al., 2023, section 3): a token that goes leaves its content to the kept token most like
it (cosine), as a mean weighted by how many patches each stands for; attention counts a token as often as it has patches.
Compaction takes dropped tokens out of the stream where nobody reads them any more, so that later layers need not step
over them.

Letters: B images, N tokens (P protected ones among them), K kept patches or tokens of a compacted stream, D channels,
T rows of all images.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .gate import TokenState
from .host import CLS


WORTH = 0.95  # a copy of the stream does not pay for less than this much fewer tokens


def take_patches(x, patches, first=1):
    """The protected tokens and the given patches of the token stream, as if the others had never been there.

    Args:
        x: (B, N, D), positions added. patches: int64 (K,) for all images, or (B, K), counted from 0.
        first: P, the number of protected tokens, which come first.

    Returns:
        (B, P + K, D), dense.

    Raises:
        ValueError: another type or shape, or more patches than there are; on CPU, one that is given twice.
        IndexError: on CPU, a patch that does not exist; other devices check while they gather.
    """
    there = x.shape[1] - first
    fits = torch.is_tensor(patches) and patches.dtype == torch.int64 and patches.ndim in (1, 2)
    if not fits or (patches.ndim == 2 and len(patches) != len(x)) or not 0 < patches.shape[-1] <= there:
        given = f"{patches.dtype} {tuple(patches.shape)}" if torch.is_tensor(patches) else type(patches).__name__
        raise ValueError(f"patches must be int64 indices (K,) or ({len(x)}, K) of 1 to {there} patches, got {given}")
    if patches.device.type == "cpu" and not torch.compiler.is_compiling():
        if patches.min() < 0 or patches.max() >= there:
            raise IndexError(f"patches must be in 0..{there - 1}, got {patches.min()}..{patches.max()}")
        in_order = patches.sort(-1).values
        if (twice := in_order[..., 1:] == in_order[..., :-1]).any():
            raise ValueError(f"each patch must be given at most once, got {in_order[..., 1:][twice][0]} twice")
    protected = torch.arange(first, device=patches.device).expand(*patches.shape[:-1], first)
    return _take(x, torch.cat((protected, patches + first), -1).to(x.device))


def merge_patches(x, patches, first=1):
    """As `take_patches`, but each patch that goes merges into the kept one most like it, once, before the first layer.

    Returns:
        (B, P + K, D) means of what was merged, and (B, P + K) how many patches each token stands for, protected ones one.
    """
    kept = take_patches(x, patches, first)
    left = patches.to(x.device) + first
    stays = torch.zeros(*left.shape[:-1], x.shape[1], dtype=torch.int8, device=x.device)
    stays[..., :first] = 1
    order = stays.scatter(-1, left, 1).sort(dim=-1, stable=True).indices  # those that go first, in the image's order
    gone = _take(x, order[..., : x.shape[1] - kept.shape[1]])  # (B, n - K, D)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        into = first + (gone @ F.normalize(kept[:, first:], dim=-1).transpose(1, 2)).argmax(-1)  # (B, n - K)
        size = torch.ones(kept.shape[:2], device=x.device)
        size.scatter_add_(1, into, torch.ones_like(into, dtype=size.dtype))
    total = kept.scatter_add(1, into.unsqueeze(-1).expand_as(gone), gone)
    return total / size.unsqueeze(-1).to(x.dtype), size


def _take(x, tokens):
    """Tokens (T,) for all images, or (B, T) for each, of x (B, N, D)."""
    if tokens.ndim == 1:
        return x.index_select(1, tokens)
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def merge(x, normed, tokens, into, state, packed, protected=CLS):
    """Kept tokens take on those that are dropped, but for protected ones.

    Args:
        x: (B, N, D). normed: the same after LayerNorm.
        tokens: (B, N) tokens that stay; bool, or float with a gradient.
        into: (B, N) where each token goes, to replay; None: to the nearest.
        state: the `TokenState` before.

    Returns:
        x, into (B, N) and the new sizes (B, N).
    """
    itself = torch.arange(x.shape[1], device=x.device)
    if into is None:
        keep = tokens > 0.5 if tokens.dtype != torch.bool else tokens
        leave = ~keep if state.alive is None else (state.alive > 0.5) & ~keep
        if packed:
            return _merge_packed(x, normed, keep, leave, state.size, protected)
        place = _nearest(
            normed, keep, protected
        )  # of the kept ones too: a sampled token learns what would become of it
        into = torch.where(leave, place, itself)
        if tokens.requires_grad:
            moving = (1 - tokens) * (place != itself)
            moving = moving if state.alive is None else moving * state.alive.detach()
            x, size = _absorb(x, state.size, place, moving)
            return x, into, size
    moving = into != itself
    x, size = _absorb(x, state.size, into, moving if packed else moving.float())
    return x, into, size


def _nearest(normed, keep, protected):
    """For each token the kept patch most like it, other than itself, or itself where there is none: (B, N).

    A protected token is never one, nor has it one. normed: (B, N, D). keep: bool (B, N) tokens that stay.
    """
    batch, num_tokens = keep.shape
    itself = torch.arange(num_tokens, device=keep.device).expand(batch, -1)
    with torch.no_grad(), torch.autocast(normed.device.type, enabled=False):
        targets = keep.unsqueeze(1) & ~torch.eye(num_tokens, dtype=torch.bool, device=keep.device)  # (B, N, N)
        targets[:, :, protected] = False
        normed = _exact(normed)
        likeness = normed @ F.normalize(normed, dim=-1).transpose(1, 2)
        into = likeness.masked_fill(~targets, -torch.inf).argmax(-1)
        found = targets.any(-1)
        found[:, protected] = False
        return torch.where(found, into, itself)


def _merge_packed(x, normed, keep, leave, size, protected):
    """`_nearest` and `_absorb` for the tokens that `leave` (B, N) alone, without the products that need not be."""
    batch, num_tokens = keep.shape
    itself = torch.arange(num_tokens, device=keep.device).expand(batch, -1)
    targets = keep.clone()
    targets[:, protected] = False
    if batch > 1:
        leave = leave & targets.any(1, keepdim=True)
    rows, columns = leave.flatten().nonzero().squeeze(1), targets.flatten().nonzero().squeeze(1)
    if not len(rows) or not len(columns):
        return x, itself, size
    with torch.no_grad(), torch.autocast(normed.device.type, enabled=False):
        flat = normed.flatten(0, 1)
        leaving = _exact(flat.index_select(0, rows))
        places = F.normalize(_exact(flat.index_select(0, columns)), dim=-1)
        if batch == 1:
            best = (leaving @ places.T).argmax(-1)
        else:
            ends, counts = targets.sum(1).cumsum(0).tolist(), leave.sum(1).tolist()
            plan = zip(leaving.split(counts), [0, *ends[:-1]], ends, strict=True)
            best = torch.cat([(one @ places[a:b].T).argmax(-1) + a for one, a, b in plan if len(one)])
        place = columns[best]
    size = torch.ones(batch, num_tokens, device=x.device) if size is None else size
    x, size = _move(x, size, rows, place, size.flatten()[rows])
    return x, itself.flatten().index_copy(0, rows, place % num_tokens).view_as(itself), size


def _exact(rows):
    """Not in 16 bit on CPU, which compiles such a product for each shape, and every image has its own."""
    rows = rows.detach()
    return rows.float() if rows.device.type == "cpu" else rows


def _absorb(x, size, into, leave):
    """x and sizes after tokens have left for others: those that receive are the mean, those that leave are as before.

    Args:
        x: (B, N, D). size: (B, N) or None. into: (B, N) where each token goes if it leaves.
        leave: (B, N) bool, or float 0.0 or 1.0 that carries a gradient (then all tokens are computed).
    """
    batch, num_tokens, _ = x.shape
    size = torch.ones(batch, num_tokens, device=x.device) if size is None else size
    place = (into + num_tokens * torch.arange(batch, device=x.device).unsqueeze(1)).flatten()
    amount = (size * leave).flatten()
    if leave.dtype != torch.bool:
        return _move(x, size, None, place, amount)
    rows = leave.flatten().nonzero().squeeze(1)
    return _move(x, size, rows, place[rows], amount[rows]) if len(rows) else (x, size)


def _move(x, size, rows, place, amount):
    """Rows (T,) of x (B, N, D), None for all, into the rows place (T,), where they count amount (T,)."""
    flat = x.flatten(0, 1)
    source = flat if rows is None else flat.index_select(0, rows)
    new_size = size.flatten().index_add(0, place, amount)
    moved = (source - flat.index_select(0, place)) * (amount / new_size[place]).unsqueeze(1).to(x.dtype)
    return flat.index_add(0, place, moved).view_as(x), new_size.detach().view_as(size)


class Places(NamedTuple):
    """Where the tokens of a compacted stream were."""

    index: torch.Tensor  # (B, K) in the full stream
    alive: torch.Tensor  # (B, N) of the full stream


def compact(x, side, state, places, num_tokens):
    """Take the dropped tokens out; with several images up to the number that the fullest of them keeps.

    Args:
        x: (B, K', D). side: (B, K', S) or None, what belongs to each token.
        state: a `TokenState` with `alive` (B, K'). places: those of x, or None if nothing was taken out before.
        num_tokens: N.

    Returns:
        x (B, K, D), side, state and places; the order of tokens is as it was.
    """
    if not len(x):
        return x, side, state, places
    alive = state.alive > 0.5
    counts = alive.sum(1)
    longest = int(counts.max())
    if longest > WORTH * x.shape[1]:
        if places is not None:
            places = places._replace(alive=torch.zeros_like(places.alive).scatter(1, places.index, alive))
        return x, side, state, places
    if len(x) == 1:
        index = alive[0].nonzero().T  # (1, K)
        left = None
    else:
        index = alive.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
        left = torch.arange(longest, device=x.device) < counts.unsqueeze(1)
    where = index if places is None else places.index.gather(1, index)
    shown = torch.zeros(len(x), num_tokens, dtype=torch.bool, device=x.device)
    shown.scatter_(1, where, torch.ones_like(where, dtype=torch.bool) if left is None else left)
    size = None if state.size is None else state.size.gather(1, index)
    side = None if side is None else _take(side, index)
    return _take(x, index), side, TokenState(left, size), Places(where, shown)


def in_full(decision, alive, places, num_tokens):
    """`LayerDecisions` made in a compacted stream, in the places of the full one; `alive` is that before the layer."""
    if places is None:
        return decision

    def spread(keep):
        if keep is None or keep is alive:
            return places.alive
        return torch.zeros_like(places.alive).scatter(1, places.index, keep > 0.5)

    into = decision.into
    if into is not None:
        itself = torch.arange(num_tokens, device=into.device).expand(len(into), -1)
        into = itself.scatter(1, places.index, places.index.gather(1, into))
    tokens = {"attention_tokens": spread(decision.attention_tokens), "mlp_tokens": spread(decision.mlp_tokens)}
    return decision._replace(**tokens, into=into)
