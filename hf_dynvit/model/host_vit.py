"""The ViT of transformers: tokens from pixels.

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
