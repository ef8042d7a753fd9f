"""Tokens from pixels, or from some of the patches, which may take on what the others hold.

In 16 bit on CPU by one matrix product, which is faster than the convolution that it equals.

Letters: B images, N tokens ([CLS] first), D channels.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTPatchEmbeddings

from .prepack import is_plain


def embed(embeddings, pixel_values, interpolate_pos_encoding):
    """The host's embeddings of pixel_values (B, channels, height, width) -> (B, N, D).

    Args:
        embeddings: the host's `ViTEmbeddings`.
        interpolate_pos_encoding: accept another image size than the configured one.
    """
    patch_embeddings = embeddings.patch_embeddings
    pixel_values = pixel_values.to(patch_embeddings.projection.weight.dtype)
    if not is_plain(embeddings, ViTEmbeddings) or not _is_faster_as_product(patch_embeddings, pixel_values):
        return embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    tokens = patch_tokens(patch_embeddings, pixel_values)
    tokens = torch.cat((embeddings.cls_token.expand(len(tokens), -1, -1), tokens), 1)
    return embeddings.dropout(tokens.add_(embeddings.position_embeddings))


def patch_tokens(patch_embeddings, pixel_values):
    """The host's `ViTPatchEmbeddings` of pixel_values (B, channels, height, width) -> (B, N - 1, D)."""
    if not _is_faster_as_product(patch_embeddings, pixel_values):
        return patch_embeddings(pixel_values)
    convolution = patch_embeddings.projection
    height, width = convolution.kernel_size
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, channels, rows, h, columns, w)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N - 1, channels * h * w)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def _is_faster_as_product(patch_embeddings, pixel_values):
    if not (is_plain(patch_embeddings, ViTPatchEmbeddings) and is_plain(patch_embeddings.projection, nn.Conv2d)):
        return False
    if pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    expected = (patch_embeddings.num_channels, *patch_embeddings.image_size)
    half = pixel_values.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")
    return half and pixel_values.shape[1:] == expected


def take_patches(x, patches):
    """[CLS] and the given patches of the token stream, which is as if the others had never been there.

    Args:
        x: (B, N, D), positions added.
        patches: int64 (K,) for all images, or (B, K), counted from 0 without [CLS].

    Returns:
        (B, 1 + K, D), dense.

    Raises:
        ValueError: another type or shape, or more patches than there are; on CPU, one that is given twice.
        IndexError: on CPU, a patch that does not exist; other devices check while they gather.
    """
    fits = torch.is_tensor(patches) and patches.dtype == torch.int64 and patches.ndim in (1, 2)
    if not fits or (patches.ndim == 2 and len(patches) != len(x)) or not 0 < patches.shape[-1] < x.shape[1]:
        given = f"{patches.dtype} {tuple(patches.shape)}" if torch.is_tensor(patches) else type(patches).__name__
        raise ValueError(
            f"patches must be int64 indices (K,) or ({len(x)}, K) of 1 to {x.shape[1] - 1} patches, got {given}"
        )
    if patches.device.type == "cpu" and not torch.compiler.is_compiling():
        if patches.min() < 0 or patches.max() >= x.shape[1] - 1:
            raise IndexError(f"patches must be in 0..{x.shape[1] - 2}, got {patches.min()}..{patches.max()}")
        in_order = patches.sort(-1).values
        if (twice := in_order[..., 1:] == in_order[..., :-1]).any():
            raise ValueError(f"each patch must be given at most once, got {in_order[..., 1:][twice][0]} twice")
    tokens = torch.cat((patches.new_zeros(*patches.shape[:-1], 1), patches + 1), -1).to(x.device)
    return _take(x, tokens)


def merge_patches(x, patches):
    """As `take_patches`, but each patch that goes leaves its content to the kept one most like it (cosine).

    ToMe's merging (Bolya et al., 2023, section 3), once, before the first layer, where the agent says who stays.

    Returns:
        (B, 1 + K, D) means of what was merged, and (B, 1 + K) how many patches each token stands for, [CLS] one.
    """
    kept = take_patches(x, patches)
    left = patches.to(x.device) + 1
    stays = torch.zeros(*left.shape[:-1], x.shape[1], dtype=torch.int8, device=x.device)
    stays[..., 0] = 1
    order = stays.scatter(-1, left, 1).sort(dim=-1, stable=True).indices  # those that go first, in the image's order
    gone = _take(x, order[..., : x.shape[1] - kept.shape[1]])  # (B, n - K, D)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        into = 1 + (gone @ F.normalize(kept[:, 1:], dim=-1).transpose(1, 2)).argmax(-1)  # (B, n - K)
        size = torch.ones(kept.shape[:2], device=x.device)
        size.scatter_add_(1, into, torch.ones_like(into, dtype=size.dtype))
    total = kept.scatter_add(1, into.unsqueeze(-1).expand_as(gone), gone)
    return total / size.unsqueeze(-1).to(x.dtype), size


def _take(x, tokens):
    """Tokens (T,) for all images, or (B, T) for each, of x (B, N, D)."""
    if tokens.ndim == 1:
        return x.index_select(1, tokens)
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
