"""The packed layout of a sub-layer: gather the rows that are used, compute on those alone, add the result back.

Letters: B images, N tokens, D channels, H heads, d channels of a head, T packed rows.
"""

import torch
from torch.nn import functional as F

from .attention import packed_attention
from .rows import add_rows, chunks, take_rows, take_values, used_rows


# Up to this width three 16-bit products cost more in calls than joining their weights costs in copies (on CPU).
FUSE_UP_TO = 384


def packed_attention_sublayer(layer, x, normed, tokens, use, heads, size=None):
    """x + attention over the rows in use.

    Args:
        layer: the host's `ViTLayer`.
        x: (B, N, D). normed: the same after `layernorm_before` if a gate has read it, else None.
        tokens: (B, N) or None. use: (B,) or None. heads: (B, H) or None.
        size: (B, N) patches that each token stands for, or None for one each.

    Returns:
        x (B, N, D), and None where the masked layout has the attention weights.
    """
    used = used_rows(x, tokens, use)
    if not used.lengths:
        return x, None
    host = layer.attention
    h = take_rows(x, normed, layer.layernorm_before, used)
    if heads is not None:
        heads = (heads if used.images is None else heads[used.images]) > 0.5
        heads = None if heads.all() else heads
    q, k, v = _project(host, h, used)  # (T, H, d)
    bias = None if size is None else take_values(size, used).log()
    dropout = host.attention_dropout if layer.training else 0.0
    out = packed_attention(q, k, v, used.lengths, heads, dropout, bias=bias)
    out = host.o_proj(used.pad(out.flatten(1)))
    if layer.training:
        out = layer.dropout(out)
    return add_rows(x, used, out), None


def packed_mlp_sublayer(layer, x, normed, tokens, use, hide):
    """x + MLP of the rows in use; `hide` (B, H) or None: heads whose channels the MLP does not see."""
    used = used_rows(x, tokens, use)
    if not used.lengths:
        return x
    h = take_rows(x, normed, layer.layernorm_after, used)
    if hide is not None:
        h = h * used.spread(spread_heads(hide if used.images is None else hide[used.images], h))
    parts = [layer.mlp(part) for part in chunks(h, layer.mlp.fc1.out_features)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    if layer.training:
        out = layer.dropout(out)
    return add_rows(x, used, out)


def spread_heads(heads, like):
    """heads (B, H) -> (B, D) in the dtype of `like` (..., D): each head stands for D / H consecutive channels."""
    return heads.to(like.dtype).repeat_interleave(like.shape[-1] // heads.shape[1], dim=1)


def _project(host, h, used):
    """q, k, v (T, H, d) of the rows h (T + padding, D), all heads: one product for all beats one for each that is on."""
    linears = (host.q_proj, host.k_proj, host.v_proj)
    if h.shape[1] <= FUSE_UP_TO and h.dtype.itemsize == 2 and h.device.type == "cpu":
        weight = torch.cat([linear.weight for linear in linears])
        bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
        return F.linear(h, weight, bias)[: used.total].unflatten(1, (3, -1, host.head_dim)).unbind(1)
    return [linear(h)[: used.total].unflatten(1, (-1, host.head_dim)) for linear in linears]
