"""Merging: a token that is dropped for good leaves its content to the kept token that is most like it.

The mean of what was merged, weighted by how many patches each token stands for, and attention that counts a token as
often as it has patches, are those of ToMe (Bolya et al., 2023, section 3); which tokens go, the gate decides.

Letters: B images, N tokens ([CLS] first), D channels, T rows of all images.
"""

import torch
from torch.nn import functional as F


def merge(x, normed, tokens, into, state, packed):
    """Kept tokens take on those that are dropped.

    Args:
        x: (B, N, D). normed: the same after LayerNorm.
        tokens: (B, N) tokens that stay; bool, or float with a gradient.
        into: (B, N) where each token goes, to replay; None: to the nearest.
        state: the `TokenState` before. packed: whether the layout is packed.

    Returns:
        x, into (B, N) and the state with the new sizes.
    """
    itself = torch.arange(x.shape[1], device=x.device)
    if into is None:
        keep = tokens > 0.5 if tokens.dtype != torch.bool else tokens
        leave = ~keep if state.alive is None else (state.alive > 0.5) & ~keep
        if packed:
            x, size, into = merge_packed(x, normed, keep, leave, state.size)
            return x, into, state._replace(size=size)
        place = nearest(normed, keep)  # of the kept ones too: a sampled token learns what would become of it
        into = torch.where(leave, place, itself)
        if tokens.requires_grad:
            moving = (1 - tokens) * (place != itself)
            moving = moving if state.alive is None else moving * state.alive.detach()
            x, size = absorb(x, state.size, place, moving)
            return x, into, state._replace(size=size)
    moving = into != itself
    x, size = absorb(x, state.size, into, moving if packed else moving.float())
    return x, into, state._replace(size=size)


def nearest(normed, keep):
    """For each token the kept patch token most like it (cosine), other than itself; itself where there is none.

    Args:
        normed: (B, N, D) tokens after LayerNorm. keep: bool (B, N) tokens that stay.

    Returns:
        (B, N) token indices; [CLS] is never one, nor has it one.
    """
    batch, num_tokens = keep.shape
    itself = torch.arange(num_tokens, device=keep.device).expand(batch, -1)
    with torch.no_grad(), torch.autocast(normed.device.type, enabled=False):
        targets = keep.unsqueeze(1) & ~torch.eye(num_tokens, dtype=torch.bool, device=keep.device)  # (B, N, N)
        targets[:, :, 0] = False
        normed = _exact(normed)
        likeness = normed @ F.normalize(normed, dim=-1).transpose(1, 2)
        into = likeness.masked_fill(~targets, -torch.inf).argmax(-1)
        found = targets.any(-1)
        found[:, 0] = False
        return torch.where(found, into, itself)


def merge_packed(x, normed, keep, leave, size):
    """`nearest` and `absorb` for the tokens that leave alone, without the products that need not be.

    Args:
        x: (B, N, D). normed: the same after LayerNorm. keep, leave: bool (B, N).
        size: (B, N) as in `absorb`.

    Returns:
        x and size as `absorb` gives them, and (B, N) where each token went, itself if it did not.
    """
    batch, num_tokens = keep.shape
    itself = torch.arange(num_tokens, device=keep.device).expand(batch, -1)
    targets = keep.clone()
    targets[:, 0] = False
    if batch > 1:
        leave = leave & targets.any(1, keepdim=True)
    rows, columns = leave.flatten().nonzero().squeeze(1), targets.flatten().nonzero().squeeze(1)
    if not len(rows) or not len(columns):
        return x, size, itself
    with torch.no_grad(), torch.autocast(normed.device.type, enabled=False):
        flat = normed.flatten(0, 1)
        leaving = _exact(flat.index_select(0, rows))
        places = F.normalize(_exact(flat.index_select(0, columns)), dim=-1)
        if batch == 1:
            best = (leaving @ places.T).argmax(-1)
        else:
            ends, counts = targets.sum(1).cumsum(0).tolist(), leave.sum(1).tolist()
            best = torch.cat(
                [
                    (one @ places[start:end].T).argmax(-1) + start
                    for one, start, end in zip(leaving.split(counts), [0, *ends[:-1]], ends, strict=True)
                    if len(one)
                ]
            )
        place = columns[best]
    size = torch.ones(batch, num_tokens, device=x.device) if size is None else size
    x, size = _move(x, size, rows, place, size.flatten()[rows])
    return x, size, itself.flatten().index_copy(0, rows, place % num_tokens).view_as(itself)


def _exact(rows):
    """Not in 16 bit on CPU, which compiles such a product for each shape, and every image has its own."""
    rows = rows.detach()
    return rows.float() if rows.device.type == "cpu" else rows


def absorb(x, size, into, leave):
    """x and sizes after tokens have left for others.

    Args:
        x: (B, N, D). size: (B, N) patches that each token stands for, or None for one each.
        into: (B, N) where each token goes if it leaves.
        leave: (B, N) bool, or float 0.0 or 1.0 that carries a gradient (then all tokens are computed).

    Returns:
        x (B, N, D): tokens that receive are the mean, those that leave are as before; and sizes (B, N), no gradient.
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
