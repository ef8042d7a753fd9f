"""The masked layout of a layer: everything is computed on full tensors and multiplied by 0 or 1.

It is the meaning of a decision, and what straight-through gradients flow through.
Letters: B images, N tokens, D channels, H heads, d channels of a head.
"""

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward

from .layer_packed import spread_heads


def masked_attention_sublayer(layer, x, normed, tokens, use, heads, size):
    """x (B, N, D) + attention, and its weights (B, H, N, N) if the attention function gives them.

    Args:
        normed: x after `layernorm_before`. tokens: (B, N), use: (B,), heads: (B, H), each of which may be None.
        size: (B, N) patches that each token stands for, or None for one each.
    """
    host = layer.attention
    mask = None
    if size is not None:
        mask = _weighted_keys(host, normed, tokens, size)
    elif tokens is not None:
        mask = create_bidirectional_mask(host.config, normed, _keys(tokens))  # the rows are multiplied below
    q, k, v = (
        projection(normed).unflatten(-1, (-1, host.head_dim)).transpose(1, 2)  # (B, H, N, d)
        for projection in (host.q_proj, host.k_proj, host.v_proj)
    )
    function = ALL_ATTENTION_FUNCTIONS.get_interface(host.config._attn_implementation, eager_attention_forward)
    if x.shape[0] == 0:  # the others do not take a batch of no images
        function = eager_attention_forward
    dropout = host.attention_dropout if host.training else 0.0
    out, weights = function(host, q, k, v, mask, dropout=dropout, scaling=host.scaling)  # (B, N, H, d)
    if heads is not None:
        out = out * heads[:, None, :, None].to(out.dtype)
    out = layer.dropout(host.o_proj(out.flatten(2)))
    return x + _times(out, tokens, use), weights


def _keys(tokens):
    """Bool (B, N): the tokens (B, N) that are attended to; of an image that uses none all, for a softmax over something."""
    keep = tokens if tokens.dtype == torch.bool else tokens > 0.5
    return keep | ~keep.any(1, keepdim=True)


def _weighted_keys(host, normed, tokens, size):
    """Additive mask (B, 1, 1, N): a key counts as often as it has patches, and not at all if it is not used."""
    if host.config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            "merged tokens weigh in attention by their size, which needs eager or sdpa attention in the masked "
            f'layout, not {host.config._attn_implementation!r}: call model.set_attn_implementation("sdpa")'
        )
    bias = size.log()
    if tokens is not None:
        bias = bias.masked_fill(~_keys(tokens), -torch.inf)
    dtype = torch.get_autocast_dtype(normed.device.type) if torch.is_autocast_enabled(normed.device.type) else None
    return bias[:, None, None].to(dtype or normed.dtype)


def masked_mlp_sublayer(layer, x, normed, tokens, use, hide):
    """x (B, N, D) + MLP; normed: x after `layernorm_after`, or None; hide (B, H) as in `packed_mlp_sublayer`."""
    if normed is None:
        normed = layer.layernorm_after(x)
    if hide is not None:
        normed = normed * spread_heads(hide, normed)[:, None]
    return x + _times(layer.dropout(layer.mlp(normed)), tokens, use)


def _times(out, tokens, use):
    """out (B, N, D) times tokens (B, N) and use (B,), each of which may be None."""
    if tokens is not None:
        out = out * tokens.unsqueeze(-1).to(out.dtype)
    if use is not None:
        out = out * use[:, None, None].to(out.dtype)
    return out
