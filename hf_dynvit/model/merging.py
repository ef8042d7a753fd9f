"""Tokens that are dropped permanently leave their content to others (ToMe, Bolya et al., 2023, section 3).

Those that receive become the mean, weighted by how many patches each token stands for; attention counts a token as often
as it has patches. Whom a token leaves for, its gate says, or it is the kept token most like it (cosine).

Letters: B images, N tokens, D channels, T rows of all images.
"""

import torch

from .host import CLS
from .rows import directions, exact, no_autocast


def merge(x, tokens, into, state, packed):
    """Kept tokens take on those that are dropped.

    Args:
        x: (B, N, D). tokens: (B, N) that stay; bool, or float with a gradient.
        into: int64 (B, N) where each token goes if it leaves; itself: nowhere.
        state: the `TokenState` before.

    Returns:
        x, the new sizes (B, N), and `into` of those that leave alone.
    """
    gone = departures(tokens if tokens.dtype == torch.bool else tokens > 0.5, into, state.alive)
    if not tokens.requires_grad:
        return *absorb(x, state.size, gone, packed), gone
    moving = (1 - tokens) * (into != itself(into))  # a sampled token learns what would become of it
    moving = moving if state.alive is None else moving * state.alive.detach()
    return *absorb(x, state.size, into, packed, moving), gone


def departures(keep, into, alive):
    """`into` (B, N) of the tokens that leave alone; those kept (bool), and those that were not alive before, go nowhere."""
    stays = keep if alive is None else keep | ~(alive > 0.5)
    return torch.where(stays, itself(into), into)


def itself(tokens):
    """The place of each of tokens (B, N): int64 (N,)."""
    return torch.arange(tokens.shape[1], device=tokens.device)


def nearest(normed, tokens, state, packed, protected=CLS):
    """For each token the kept patch most like it, other than itself, or itself where there is none: int64 (B, N).

    Args:
        normed: (B, N, D). tokens: (B, N) that stay. protected: places of tokens that take no part.
        packed: find those of tokens that leave alone, without the products that need not be.
    """
    keep = tokens if tokens.dtype == torch.bool else tokens > 0.5
    targets = keep.clone()
    targets[:, protected] = False
    if packed:
        leave = ~keep if state.alive is None else ~keep & (state.alive > 0.5)
        with no_autocast(normed):
            return _nearest_packed(normed.detach(), leave, targets)
    pairs = targets.unsqueeze(1) & ~torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)  # (B, N, N)
    normed = exact(normed)
    with no_autocast(normed):
        likeness = normed @ directions(normed).transpose(1, 2)
    into = likeness.masked_fill(~pairs, -torch.inf).argmax(-1)
    found = pairs.any(-1)
    found[:, protected] = False
    return torch.where(found, into, itself(keep))


def _nearest_packed(normed, leave, targets):
    """`nearest` of the tokens that `leave` (B, N) among the `targets` (B, N)."""
    batch, num_tokens = leave.shape
    if batch > 1:
        leave = leave & targets.any(1, keepdim=True)
    into = itself(leave).repeat(batch, 1)
    rows, columns = leave.flatten().nonzero().squeeze(1), targets.flatten().nonzero().squeeze(1)
    if not len(rows) or not len(columns):
        return into
    flat = normed.flatten(0, 1)
    leaving = exact(flat.index_select(0, rows))
    places = directions(flat.index_select(0, columns))
    if batch == 1:
        best = (leaving @ places.T).argmax(-1)
    else:
        ends, counts = targets.sum(1).cumsum(0).tolist(), leave.sum(1).tolist()
        plan = zip(leaving.split(counts), [0, *ends[:-1]], ends, strict=True)
        best = torch.cat([(one @ places[a:b].T).argmax(-1) + a for one, a, b in plan if len(one)])
    return into.flatten().index_copy_(0, rows, columns[best] % num_tokens).view_as(into)


def absorb(x, size, into, packed, moving=None):
    """x and sizes after tokens have left for others: those that receive are the mean, those that leave are as before.

    Args:
        x: (B, N, D). size: (B, N) or None. into: (B, N) where each token goes.
        packed: compute those that go alone.
        moving: (B, N) float 0.0 or 1.0 that carries a gradient, which go; None: all whose `into` is another token.
    """
    batch, num_tokens = into.shape
    place = (into + num_tokens * torch.arange(batch, device=x.device).unsqueeze(1)).flatten()
    old = torch.ones(into.shape, device=x.device) if size is None else size
    flat = x.flatten(0, 1)
    if packed:
        rows = (into != itself(into)).flatten().nonzero().squeeze(1)
        if not len(rows):
            return x, old
        one = flat.index_select(0, rows)
        place, amount = place.index_select(0, rows), old.flatten().index_select(0, rows)
        flat, new = move(one, place, amount, flat.clone(), old.flatten())
    else:
        moving = into != itself(into) if moving is None else moving
        flat, new = move(flat, place, (old * moving).flatten(), flat.clone(), old.flatten())
    return flat.view_as(x), new.view_as(old)


def move(source, place, amount, flat, size):
    """Rows source (T, D) move into the rows place (T,) of flat (rows, D), where they count amount (T,).

    Args:
        flat: written into. size: (rows,) patches of its tokens.

    Returns:
        flat and the new sizes.
    """
    new_size = size.index_add(0, place, amount)
    share = (amount / new_size.index_select(0, place)).unsqueeze(1).to(flat.dtype)
    moved = (source - flat.index_select(0, place)) * share
    return flat.index_add_(0, place, moved), new_size.detach()
