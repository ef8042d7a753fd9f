"""The packed layout of a layer: gather the rows that are used, compute on those alone, put the result back.

Products are joined, and activations fused into them, only where the host's modules are exactly its own and without
hooks; all others are called, on the packed rows.

Letters: B images, N tokens, D channels, H heads, d channels of a head, T packed rows.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.models.vit.modeling_vit import ViTMLP

from .packed_attention import packed_attention
from .prepack import PrepackedLinear, are_joinable, is_plain
from .rows import add_rows, chunks, put_rows, take_rows, take_values, used_rows


# Up to this width three 16-bit products cost more in calls than joining their weights costs in copies (on CPU).
FUSE_UP_TO = 384


def packed_block(layer, x, normed, tokens, use, heads, size=None, hide=None):
    """x (B, N, D) after attention and MLP over the same rows: one gather and one way back for both.

    The arguments are those of `packed_attention_sublayer` and `packed_mlp_sublayer`.
    """
    used = used_rows(x, tokens, use, _prepacked(layer, x))
    if not used.lengths:
        return x
    rows = take_rows(x, used)
    h = layer.layernorm_before(rows) if normed is None else take_rows(normed, used)
    rows = rows + _attend(layer, h, used, heads, size)
    rows = rows + _mlp(layer, layer.layernorm_after(rows), used, hide)
    return put_rows(x, used, rows)


def packed_attention_sublayer(layer, x, normed, tokens, use, heads, size=None):
    """x + attention over the rows in use.

    Args:
        layer: the host's `ViTLayer`.
        x: (B, N, D). normed: the same after `layernorm_before` if a gate has read it, else None.
        tokens: (B, N) or None. use: list of B bools or None. heads: (B, H) or None.
        size: (B, N) patches that each token stands for, or None for one each.

    Returns:
        x (B, N, D).
    """
    used = used_rows(x, tokens, use, _prepacked(layer, x))
    if not used.lengths:
        return x
    h = layer.layernorm_before(take_rows(x, used)) if normed is None else take_rows(normed, used)
    return add_rows(x, used, _attend(layer, h, used, heads, size))


def packed_mlp_sublayer(layer, x, normed, tokens, use, hide=None):
    """x + MLP of the rows in use; `hide` (B, H) or None: heads whose channels the MLP does not see."""
    used = used_rows(x, tokens, use, _prepacked(layer, x))
    if not used.lengths:
        return x
    h = layer.layernorm_after(take_rows(x, used)) if normed is None else take_rows(normed, used)
    return add_rows(x, used, _mlp(layer, h, used, hide))


def spread_heads(heads, like):
    """heads (B, H) -> (B, D) in the dtype of `like` (..., D): each head stands for D / H consecutive channels."""
    return heads.to(like.dtype).repeat_interleave(like.shape[-1] // heads.shape[1], dim=1)


def _prepacked(layer, x):
    """Whether the layer's products run prepacked, for which oneDNN compiles a kernel per number of rows too."""
    query = layer.attention.q_proj
    return type(query) is PrepackedLinear and query.serves(x)


def _attend(layer, h, used, heads, size):
    """Attention of the normed rows h (T + padding, D), before the residual; as many rows."""
    host = layer.attention
    if heads is not None:
        heads = (heads if used.images is None else heads[used.images]) > 0.5
        heads = None if heads.all() else heads
    q, k, v = _project(host, h, used)  # (T, H, d)
    bias = None if size is None else take_values(size, used).log()
    dropout = host.attention_dropout if host.training else 0.0
    out = packed_attention(q, k, v, used.lengths, heads, dropout, bias=bias)
    return _drop(layer, host.o_proj(used.pad(out.flatten(1))))


def _mlp(layer, h, used, hide):
    """MLP of the normed rows h (T + padding, D), before the residual; as many rows."""
    if hide is not None:
        h = h * used.spread(spread_heads(hide if used.images is None else hide[used.images], h))
    mlp = layer.mlp
    if not _is_plain_mlp(mlp):
        out = mlp(h)
    elif type(mlp.fc1) is PrepackedLinear and mlp.fc1.serves(h) and is_plain(mlp.activation_fn, GELUActivation):
        out = mlp.fc2(mlp.fc1(h, "gelu"))
    else:
        parts = [mlp(part) for part in chunks(h, mlp.fc1.out_features)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _drop(layer, out)


def _drop(layer, out):
    """Dropout of out (T + padding, D); at one image even a call that does nothing takes its time."""
    dropout = layer.dropout
    return dropout(out) if dropout.training or not is_plain(dropout, nn.Dropout) else out


def _is_plain_mlp(mlp):
    """Whether the MLP may run in parts: nobody has put anything else in its place, or looks at what goes through it."""
    return is_plain(mlp, ViTMLP) and all(is_plain(linear, nn.Linear, PrepackedLinear) for linear in (mlp.fc1, mlp.fc2))


def _project(host, h, used):
    """q, k, v (T, H, d) of the rows h (T + padding, D), all heads: one product for all beats one for each that is on."""
    linears = (host.q_proj, host.k_proj, host.v_proj)
    joinable = are_joinable(linears)
    if joinable and type(host.q_proj) is PrepackedLinear and host.q_proj.serves(h):
        joint = host.q_proj.joint(linears[1:], h)
    elif joinable and h.shape[1] <= FUSE_UP_TO and h.dtype.itemsize == 2 and h.device.type == "cpu":
        bias = None if host.q_proj.bias is None else torch.cat([linear.bias for linear in linears])
        joint = F.linear(h, torch.cat([linear.weight for linear in linears]), bias)
    else:
        return [linear(h)[: used.total].unflatten(1, (-1, host.head_dim)) for linear in linears]
    return joint[: used.total].unflatten(1, (3, -1, host.head_dim)).unbind(1)
