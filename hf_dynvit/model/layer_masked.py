"""The masked layout of a layer: everything is computed on full tensors and multiplied by 0 or 1.

It is the meaning of a decision, and what straight-through gradients flow through.
Letters: B images, N tokens, D channels, H heads, d channels of a head.
"""

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cls_attention import Noted, cls_attention, value_length
from .layer_packed import spread_heads


def masked_attention_sublayer(parts, x, normed, tokens, use, heads, state, notes=()):
    """x (B, N, D) + attention, its weights (B, H, N, N) if the attention function gives them, and what is `Noted`, or None.

    Args:
        normed: x after the norm.
        tokens: (B, N), use: (B,), heads: (B, H), each of which may be None. state: the `TokenState`.
        notes: some of `NOTES`.
    """
    config, mask = parts.attention.config, None
    if state.size is not None:
        mask = _weighted_keys(config, normed, tokens, state.size)
    elif tokens is not None:
        mask = create_bidirectional_mask(config, normed, _keys(tokens))  # the rows are multiplied below
    joint = [linear(normed) for linear in parts.projections]
    parted = joint if len(joint) == 3 else joint[0].chunk(3, -1)
    q, k, v = (t.unflatten(-1, (-1, parts.head_dim)) for t in parted)  # (B, N, H, d)
    if parts.turn is not None:
        q, k = parts.turn(q, k, state.side)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    function = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, parts.eager)
    if x.shape[0] == 0:  # the others do not take a batch of no images
        function = parts.eager
    scaling = parts.head_dim**-0.5
    out, weights = function(parts.attention, q, k, v, mask, dropout=parts.dropout, scaling=scaling)  # (B, N, H, d)
    if heads is not None:
        out = out * heads[:, None, :, None].to(out.dtype)
    out = parts.residuals[0](parts.out(out.flatten(2)))
    return x + _times(out, tokens, use), weights, _note(q, k, v, tokens, use, state, notes) if notes else None


def _note(q, k, v, tokens, use, state, notes):
    """`Noted` of all tokens, for q, k, v (B, H, N, d): those that take no part keep what is known of them, or 0."""
    part = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device) if tokens is None else tokens > 0.5
    bias = torch.zeros(part.shape, device=q.device) if state.size is None else state.size.log()
    bias = bias if tokens is None else bias.masked_fill(~_keys(tokens), -torch.inf)
    part = part if use is None else part & (use > 0.5).unsqueeze(1)

    def among(new, old):
        return torch.where(part, new, torch.zeros_like(new) if old is None else old).flatten()

    attention = among(cls_attention(q[:, :, :1], k, bias), state.attention)
    values = among(value_length(v.transpose(1, 2)), state.values) if "values" in notes else None
    return Noted(attention, values, None)


def _keys(tokens):
    """Bool (B, N): the tokens (B, N) that are attended to; of an image that uses none all, for a softmax over something."""
    keep = tokens if tokens.dtype == torch.bool else tokens > 0.5
    return keep | ~keep.any(1, keepdim=True)


def _weighted_keys(config, normed, tokens, size):
    """Additive mask (B, 1, 1, N): a key counts as often as it has patches, and not at all if it is not used."""
    if config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            "merged tokens weigh in attention by their size, which needs eager or sdpa attention in the masked "
            f'layout, not {config._attn_implementation!r}: call model.set_attn_implementation("sdpa")'
        )
    bias = size.log()
    if tokens is not None:
        bias = bias.masked_fill(~_keys(tokens), -torch.inf)
    dtype = torch.get_autocast_dtype(normed.device.type) if torch.is_autocast_enabled(normed.device.type) else None
    return bias[:, None, None].to(dtype or normed.dtype)


def masked_mlp_sublayer(parts, x, normed, tokens, use, hide):
    """x (B, N, D) + MLP; normed: x after the norm, or None; hide (B, H) as in `packed_mlp_sublayer`."""
    if normed is None:
        normed = parts.mlp_norm(x)
    if hide is not None:
        normed = normed * spread_heads(hide, normed)[:, None]
    return x + _times(parts.residuals[1](parts.mlp(normed)), tokens, use)


def masked_bypass(bypass, x, out, tokens, use):
    """out (B, N, D) + `bypass` of x (B, N, D), for the tokens (B, N) of images that `use` (B,) skips; None: all, or none."""
    if bypass is None or use is None:
        return out
    return out + _times(bypass(x), tokens, 1 - use.to(x.dtype))


def _times(out, tokens, use):
    """out (B, N, D) times tokens (B, N) and use (B,), each of which may be None."""
    if tokens is not None:
        out = out * tokens.unsqueeze(-1).to(out.dtype)
    if use is not None:
        out = out * use[:, None, None].to(out.dtype)
    return out
