"""Features that patch agents read of an image before the ViT runs on it, without gradient and without dropout.

Letters: B images, n patches, N = n + 1 tokens, D channels, H heads, d channels of a head, F features in all.
"""

import torch
from torch.nn import functional as F

from ..model.cost import stem_macs
from ..model.host_vit import patch_tokens
from ..model.novelty import novelty, novelty_macs


@torch.no_grad()
def input_tokens(vit, pixel_values):
    """The tokens that enter the first layer, positions added: pixel_values (B, channels, height, width) -> (B, N, D)."""
    embeddings = vit.embeddings
    patches = patch_tokens(embeddings.patch_embeddings, pixel_values)
    cls_token = embeddings.cls_token.expand(len(patches), -1, -1)
    return torch.cat((cls_token.to(patches.dtype), patches), 1) + embeddings.position_embeddings


def input_macs(config, patches):
    """MACs of `input_tokens` for one image of n patches."""
    return stem_macs(config, patches + 1, 0)


@torch.no_grad()
def attention_signal(vit, pixel_values):
    """AgentViT's state (B, n), float32: the output of the first layer's attention, averaged over its D channels.

    It is taken after the output projection and before the residual; [CLS] takes part as a key and has no value of
    its own. The projection and the mean are both linear, so they are one product with a single row.
    """
    layer = vit.layers[0]
    attention = layer.attention
    normed = layer.layernorm_before(input_tokens(vit, pixel_values))
    q, k, v = (
        projection(rows).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (B, H, N, d), no query of [CLS]
        for projection, rows in (
            (attention.q_proj, normed[:, 1:]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling).transpose(1, 2).flatten(2)  # (B, n, H * d)
    weight, bias = attention.o_proj.weight.float().mean(0), attention.o_proj.bias.float().mean()
    return (out.float() * weight).sum(-1) + bias  # a matrix product would be one of 16 bit under autocast


def attention_signal_macs(config, patches):
    """MACs of `attention_signal` for one image of n patches, `input_tokens` included."""
    width, tokens = config.hidden_size, patches + 1
    projections = (patches + 2 * tokens) * width * width  # queries, keys and values
    return input_macs(config, patches) + projections + 2 * patches * tokens * width


def patch_features(tokens, pixel_values, grid, statistics, position, novelty=False):
    """Normalised tokens, and what else is asked for, side by side: float32 (B, n, F), F as `feature_count` says.

    Args:
        tokens: (B, n, D), those that enter the first layer.
        pixel_values: (B, channels, height, width). grid: the backbone's patch embeddings, for the sizes.
        statistics: also the patch's brightness and contrast, relative to the other patches of its image.
        position: also its row and column, from -1 to 1, and its squared distance from the centre.
        novelty: also, as the last feature, how little it shares with earlier patches (`pixel_novelty`).
    """
    parts = [F.layer_norm(tokens.float(), tokens.shape[-1:])]
    if statistics:
        parts.append(patch_statistics(pixel_values, grid))
    if position:
        parts.append(patch_places(grid).to(tokens.device).expand(len(tokens), -1, -1))
    if novelty:
        parts.append(pixel_novelty(pixel_values, grid).unsqueeze(-1))
    return torch.cat(parts, 2)


def feature_count(width, statistics, position, novelty=False):
    return width + 2 * statistics + 3 * position + bool(novelty)


def pixel_novelty(pixel_values, grid):
    """`novelty` (B, n) of the patches' pixels, taken from the image's mean: an empty background is new once."""
    pixels = pixel_values.float()
    pixels = pixels - pixels.mean((1, 2, 3), keepdim=True)
    patches = F.unfold(pixels, grid.patch_size, stride=grid.patch_size).transpose(1, 2)  # (B, n, pixels of a patch)
    # A row for [CLS], and a column by which patches that are the mean itself, and have no direction, are alike.
    return novelty(F.pad(patches, (0, 1, 1, 0), value=1e-3))[:, 1:]


def pixel_novelty_macs(grid, patches):
    """MACs of `pixel_novelty` for one image of n patches."""
    return novelty_macs(patches + 1, grid.patch_size[0] * grid.patch_size[1] * grid.num_channels + 1)


def patch_statistics(pixel_values, grid):
    """Mean of each patch's pixels and their deviation within channels, both standardised over the image: (B, n, 2)."""
    pixels = pixel_values.float()
    mean, square = (F.avg_pool2d(values, grid.patch_size) for values in (pixels, pixels**2))
    deviation = (square - mean**2).clamp(min=0).mean(1).sqrt()
    values = torch.stack((mean.mean(1), deviation), -1).flatten(1, 2)  # (B, n, 2)
    return (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True, correction=0) + 1e-6)


def patch_places(grid):
    """Row and column from -1 to 1 and the squared distance from the centre, float32 (n, 3)."""
    sides = (size // patch for size, patch in zip(grid.image_size, grid.patch_size, strict=True))
    y, x = ((torch.arange(side) + 0.5) * 2 / side - 1 for side in sides)
    places = torch.cartesian_prod(y, x)
    return torch.cat((places, places.square().sum(1, keepdim=True)), 1)
