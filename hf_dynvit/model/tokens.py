"""Patches that are left out of the token stream before the first layer, and those that merge into others there.

Letters: B images, N tokens (P protected ones among them), K kept patches, D channels.
"""

import torch
from torch.nn import functional as F


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
