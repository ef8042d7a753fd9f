"""Tokens from pixels; in 16 bit on CPU by one matrix product, which is faster than the convolution it equals.

Letters: B images, N tokens ([CLS] first), D channels.
"""

import torch
from torch.nn import functional as F


def embed(embeddings, pixel_values, interpolate_pos_encoding):
    """The host's embeddings of pixel_values (B, channels, height, width) -> (B, N, D).

    Args:
        embeddings: the host's `ViTEmbeddings`.
        interpolate_pos_encoding: accept another image size than the configured one.
    """
    convolution = embeddings.patch_embeddings.projection
    pixel_values = pixel_values.to(convolution.weight.dtype)
    expected = (embeddings.patch_embeddings.num_channels, *embeddings.image_size)
    on_cpu = pixel_values.device.type == "cpu" and pixel_values.dtype.itemsize == 2
    if torch.is_grad_enabled() or not on_cpu or pixel_values.shape[1:] != expected or torch.compiler.is_compiling():
        return embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    height, width = convolution.kernel_size
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, channels, rows, h, columns, w)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N - 1, channels * h * w)
    tokens = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
    tokens = torch.cat((embeddings.cls_token.expand(len(tokens), -1, -1), tokens), 1)
    return embeddings.dropout(tokens.add_(embeddings.position_embeddings))
