"""The packed layout of a layer: gather the rows that are used, compute on those alone, put the result back.

Products are joined, and activations fused into them, only where the modules are plain linear layers without hooks; all
others are called, on the packed rows.

Letters: B images, N tokens, D channels, H heads, d channels of a head, T packed rows, S numbers per token.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from .cls_attention import note_rows
from .decisions import UNTOUCHED
from .packed_attention import packed_attention
from .prepack import PrepackedLinear, are_joinable, is_plain
from .rows import add_rows, chunks, put_rows, sixteen_bit_on_cpu, take_rows, take_values, used_rows


# Up to this width three 16-bit products cost more in calls than joining their weights costs in copies (on CPU).
FUSE_UP_TO = 384


def packed_block(parts, x, normed, tokens, use, heads, state=UNTOUCHED, hide=None, notes=()):
    """As `packed_attention_sublayer`, then `packed_mlp_sublayer`, over the same rows: one gather and one way back."""
    used = rows_in_use(parts, x, tokens, use, state)
    if not used.lengths:
        return x, None
    h = None if normed is None else take_rows(normed, used)
    rows, noted = packed_rows(parts, take_rows(x, used), h, used, heads, state, hide, notes)
    return put_rows(x, used, rows), noted


def packed_rows(parts, rows, h, used, heads, state, hide, notes=()):
    """Attention and MLP over rows (T + padding, D), the `used` ones of their stream; h: after the first norm, or None."""
    h = parts.attention_norm(rows) if h is None else h
    out, noted = _attend(parts, h, used, heads, state, notes)
    rows = rows + out
    return rows + _mlp(parts, parts.mlp_norm(rows), used, hide), noted


def packed_attention_sublayer(parts, x, normed, tokens, use, heads, state, notes=()):
    """x (B, N, D) + attention over the rows in use, and what is `Noted` of it, if notes are asked for.

    Args:
        normed: x after the norm if a gate has read it, else None.
        tokens: (B, N), use: list of B bools, heads: (B, H), each of which may be None. state: the `TokenState`.
        notes: some of `NOTES`.
    """
    used = rows_in_use(parts, x, tokens, use, state)
    if not used.lengths:
        return x, None
    h = parts.attention_norm(take_rows(x, used)) if normed is None else take_rows(normed, used)
    out, noted = _attend(parts, h, used, heads, state, notes)
    return add_rows(x, used, out), noted


def packed_mlp_sublayer(parts, x, normed, tokens, use, state, hide=None):
    """x + MLP of the rows in use; `hide` (B, H) or None: heads whose channels the MLP does not see."""
    used = rows_in_use(parts, x, tokens, use, state)
    if not used.lengths:
        return x
    h = parts.mlp_norm(take_rows(x, used)) if normed is None else take_rows(normed, used)
    return add_rows(x, used, _mlp(parts, h, used, hide))


def packed_bypass(bypass, x, out, tokens, use):
    """out (B, N, D) + `bypass` of the rows of x in tokens (B, N), for images that `use`, a list of bools, skips."""
    if bypass is None or use is None:
        return out
    used = used_rows(x, tokens, [not on for on in use])
    return add_rows(out, used, bypass(take_rows(x, used))) if used.lengths else out


def spread_heads(heads, like):
    """heads (B, H) -> (B, D) in the dtype of `like` (..., D): each head stands for D / H consecutive channels."""
    return heads.to(like.dtype).repeat_interleave(like.shape[-1] // heads.shape[1], dim=1)


def rows_in_use(parts, x, tokens, use, state):
    return used_rows(x, tokens, use, rounds(parts, x), state.places is not None)


def rounds(parts, x):
    """Whether the number of rows is rounded: in 16 bit on CPU, and prepacked, oneDNN compiles a kernel for each."""
    first = parts.projections[0]
    return sixteen_bit_on_cpu(x) or (type(first) is PrepackedLinear and first.serves(x))


def _attend(parts, h, used, heads, state, notes):
    """Attention of the normed rows h (T + padding, D), before the residual, as many rows; and what is `Noted`, or None."""
    heads = heads_on(heads, used)
    q, k, v = project(parts.projections, parts.head_dim, h, used)  # (T, H, d)
    if parts.turn is not None:
        q, k = parts.turn(q, k, None if state.side is None else take_rows(state.side, used)[: used.total])
    bias = None if state.size is None else take_values(state.size, used).log()
    out = packed_attention(q, k, v, used.lengths, heads, parts.dropout, bias=bias)
    noted = note_rows(q, k, v, used, bias, notes) if notes else None
    return residual(parts.residuals[0], parts.out(used.pad(out.flatten(1)))), noted


def heads_on(heads, used):
    """Bool (images, H), of the images in use, or None where all are on, from heads (B, H) or None."""
    if heads is None:
        return None
    heads = (heads if used.images is None else heads[used.images]) > 0.5
    return None if heads.all() else heads


def _mlp(parts, h, used, hide):
    """MLP of the normed rows h (T + padding, D), before the residual; as many rows."""
    if hide is not None:
        h = h * used.spread(spread_heads(hide if used.images is None else hide[used.images], h))
    linears = parts.mlp_linears
    if not linears or not all(is_plain(linear, nn.Linear, PrepackedLinear) for linear in linears):
        out = parts.mlp(h)  # somebody has put anything else in its place, or looks at what goes through it
    elif _fuses(parts, h):
        out = linears[1](linears[0](h, "gelu"))
    else:
        rows = [parts.mlp(part) for part in chunks(h, linears[0].out_features)]
        out = rows[0] if len(rows) == 1 else torch.cat(rows)
    return residual(parts.residuals[1], out)


def _fuses(parts, h):
    """Whether the first of two layers can compute the activation between them."""
    first = parts.mlp_linears[0]
    if type(first) is not PrepackedLinear or len(parts.mlp_linears) != 2 or not first.serves(h):
        return False
    return is_plain(parts.activation, GELUActivation)


def residual(module, out):
    """out (T + padding, D) through dropout or layer scale; at one image even a call that does nothing takes its time."""
    return out if is_plain(module, nn.Dropout) and not module.training else module(out)


def project(linears, head_dim, h, used):
    """q, k, v (T, H, d), or some of them, of the rows h (T + padding, D): one product for all heads beats one for each that is on."""
    first, *others = linears
    joinable = bool(others) and are_joinable(linears)
    if not others:
        joint = first(h)
    elif joinable and type(first) is PrepackedLinear and first.serves(h):
        joint = first.joint(others, h)
    elif joinable and h.shape[1] <= FUSE_UP_TO and h.dtype.itemsize == 2 and h.device.type == "cpu":
        bias = None if first.bias is None else torch.cat([linear.bias for linear in linears])
        joint = F.linear(h, torch.cat([linear.weight for linear in linears]), bias)
    else:
        return [linear(h)[: used.total].unflatten(1, (-1, head_dim)) for linear in linears]
    return joint[: used.total].unflatten(1, (len(linears) if others else 3, -1, head_dim)).unbind(1)
