"""Merging: a token that is dropped for good leaves its content to the kept token that is most like it.

The mean of what was merged, weighted by how many patches each token stands for, and attention that counts a token as
often as it has patches, are those of ToMe (Bolya et al., 2023, section 3); which tokens go, the gate decides.

Letters: B images, N tokens ([CLS] first), D channels, T rows of all images.
"""

import torch
from torch.nn import functional as F


def nearest(normed, keep, leave):
    """For each token the kept patch token most like it (cosine), other than itself; itself where there is none.

    Args:
        normed: (B, N, D) tokens after LayerNorm.
        keep: bool (B, N) tokens that stay. leave: bool (B, N) tokens to find a place for, or None for all.

    Returns:
        (B, N) token indices; [CLS] is never one, nor has it one.
    """
    batch, num_tokens = keep.shape
    itself = torch.arange(num_tokens, device=keep.device).expand(batch, -1)
    normed = normed.detach()
    # Not in 16 bit: CPUs compile such a product for each shape, and here every image has its own.
    with torch.no_grad(), torch.autocast(normed.device.type, enabled=False):
        if leave is not None:
            return _nearest_packed(normed, keep, leave, itself)
        targets = keep.unsqueeze(1) & ~torch.eye(num_tokens, dtype=torch.bool, device=keep.device)  # (B, N, N)
        targets[:, :, 0] = False
        normed = normed.float() if normed.device.type == "cpu" else normed
        likeness = normed @ F.normalize(normed, dim=-1).transpose(1, 2)
        into = likeness.masked_fill(~targets, -torch.inf).argmax(-1)
        found = targets.any(-1)
        found[:, 0] = False
        return torch.where(found, into, itself)


def _nearest_packed(normed, keep, leave, itself):
    """The same for `leave` alone, without the products that need not be: one for each image."""
    targets = keep.clone()
    targets[:, 0] = False
    leave = leave & targets.any(1, keepdim=True)
    rows, columns = leave.flatten().nonzero().squeeze(1), targets.flatten().nonzero().squeeze(1)
    if not len(rows):
        return itself
    flat = normed.flatten(0, 1)
    flat = flat.float() if flat.device.type == "cpu" else flat
    places = F.normalize(flat.index_select(0, columns), dim=-1).split(targets.sum(1).tolist())
    leaving = flat.index_select(0, rows).split(leave.sum(1).tolist())
    ends = targets.sum(1).cumsum(0).tolist()
    best = [
        (one @ other.T).argmax(-1) + end - len(other)
        for one, other, end in zip(leaving, places, ends, strict=True)
        if len(one)
    ]
    into = columns[torch.cat(best)] % keep.shape[1]
    return itself.flatten().index_copy(0, rows, into).view_as(itself)


def absorb(x, size, into, leave):
    """x and sizes after tokens have left for others.

    Args:
        x: (B, N, D). size: (B, N) patches that each token stands for, or None for one each.
        into: (B, N) where each token goes if it leaves.
        leave: (B, N) bool, or float 0.0 or 1.0 that carries a gradient (then all tokens are computed).

    Returns:
        x (B, N, D): tokens that receive are the mean, those that leave are as before; and sizes (B, N), no gradient.
    """
    batch, num_tokens, width = x.shape
    size = torch.ones(batch, num_tokens, device=x.device) if size is None else size
    flat = x.flatten(0, 1)
    place = (into + num_tokens * torch.arange(batch, device=x.device).unsqueeze(1)).flatten()
    amount = (size * leave).flatten()
    if leave.dtype == torch.bool:
        rows = leave.flatten().nonzero().squeeze(1)
        if not len(rows):
            return x, size
        source, place, amount = flat.index_select(0, rows), place[rows], amount[rows]
    else:
        source = flat
    new_size = size.flatten().index_add(0, place, amount)
    moved = (source - flat.index_select(0, place)) * (amount / new_size[place]).unsqueeze(1).to(x.dtype)
    x = flat.index_add(0, place, moved).view_as(x)
    return x, new_size.detach().view(batch, num_tokens)
