"""What patch agents read of an image before the ViT runs on it, without gradient and without dropout.

Letters: B images, n patches, N = n + 1 tokens, D channels, H heads, d channels of a head.
"""

import torch
from torch.nn import functional as F

from ..model.cost import stem_macs
from ..model.host_vit import patch_tokens


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
    host = layer.attention
    normed = layer.layernorm_before(input_tokens(vit, pixel_values))
    q, k, v = (
        projection(rows).unflatten(-1, (-1, host.head_dim)).transpose(1, 2)  # (B, H, N, d), no query of [CLS]
        for projection, rows in ((host.q_proj, normed[:, 1:]), (host.k_proj, normed), (host.v_proj, normed))
    )
    out = F.scaled_dot_product_attention(q, k, v, scale=host.scaling).transpose(1, 2).flatten(2)  # (B, n, H * d)
    weight, bias = host.o_proj.weight.float().mean(0), host.o_proj.bias.float().mean()
    return (out.float() * weight).sum(-1) + bias  # a matrix product would be one of 16 bit under autocast


def attention_signal_macs(config, patches):
    """MACs of `attention_signal` for one image of n patches, `input_tokens` included."""
    width, tokens = config.hidden_size, patches + 1
    projections = (patches + 2 * tokens) * width * width  # queries, keys and values
    return input_macs(config, patches) + projections + 2 * patches * tokens * width
