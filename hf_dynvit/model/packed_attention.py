"""Attention over packed sequences: T rows of B images, each image attending to itself alone.

Letters: B images, T packed rows, H heads, d channels of a head, n rows of one image.

Three kernels compute the same thing. `loop` (CPU): one batched product per image, whose scores stay in cache, or one
call for all images where they are equally long. `varlen` (CUDA, 16 bit): torch's variable-length flash
attention. `padded` (the rest): images padded to the longest one, keys masked.
"""

import torch
from torch.nn import functional as F
from torch.nn.functional import dropout, scaled_dot_product_attention


try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None


def on_cpu(query):
    return query.device.type == "cpu"


def choose_kernel(query):
    """The kernel for `query` (T, H, d): by device, dtype, head width and what this torch offers."""
    if on_cpu(query):
        return "loop"
    if varlen_attn is None or not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return "padded"
    # What torch's flash attention asks for: head widths in steps of 8 up to 256, and Ampere or newer.
    width_fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return "varlen" if width_fits and torch.cuda.get_device_capability(query.device) >= (8, 0) else "padded"


def packed_attention(query, key, value, lengths, heads=None, dropout_p=0.0, kernel=None, bias=None):
    """Softmax attention of each image over its own rows: query, key, value (T, H, d) -> (T, H, d).

    Args:
        lengths: list of B ints, rows per image; they sum to T.
        heads: bool (B, H), heads to compute, or None for all; the output of the others is 0.
        kernel: "loop", "varlen" or "padded"; None chooses.
        bias: (T,) added to the scores of each key, or None.
    """
    kernel = kernel or choose_kernel(query)
    if kernel == "loop" and heads is None and bias is None and dropout_p == 0.0 and len(set(lengths)) == 1:
        return _equal_on_cpu(query, key, value, len(lengths))
    if kernel == "loop":
        return _loop(query, key, value, lengths, heads, dropout_p, bias)
    if bias is not None:
        return _with_bias(query, key, value, lengths, heads, dropout_p, kernel, bias)
    if heads is None:
        return _attend(query, key, value, lengths, dropout_p, kernel)
    # Every (head, image) pair that is on becomes a sequence with one head.
    lengths_t = torch.tensor(lengths, device=query.device)
    rows_on = heads.repeat_interleave(lengths_t, 0, output_size=len(query)).T  # (H, T)
    pair_lengths = lengths_t.expand(heads.shape[1], -1)[heads.T].tolist()
    out = torch.zeros_like(query).transpose(0, 1)  # (H, T, d)
    if pair_lengths:
        pairs = (t.transpose(0, 1)[rows_on].unsqueeze(1) for t in (query, key, value))
        out = out.masked_scatter(rows_on.unsqueeze(-1), _attend(*pairs, pair_lengths, dropout_p, kernel))
    return out.transpose(0, 1)


def few_attention(query, key, value, lengths, heads=None, dropout_p=0.0, bias=None):
    """As `packed_attention`, of a few queries of each image, as many of all: (B * P, H, d), and as many outputs."""
    images, device = len(lengths), query.device
    if on_cpu(query) and (heads is not None or len(set(lengths)) > 1):
        return _loop(query, key, value, lengths, heads, dropout_p, bias, [len(query) // images] * images)
    mask = bias
    if len(set(lengths)) > 1:
        lengths = torch.tensor(lengths, device=device).unsqueeze(1)
        places = torch.arange(int(lengths.max()), device=device)
        index = (lengths.cumsum(0) - lengths + places).clamp_max(len(key) - 1).flatten()
        padding = (places >= lengths).flatten()  # rows of other images, which may not be finite
        key, value = (values.index_select(0, index).masked_fill(padding[:, None, None], 0) for values in (key, value))
        mask = query.new_zeros(len(index)) if bias is None else bias.index_select(0, index)
        mask = mask.masked_fill(padding, float("-inf"))
    mask = None if mask is None else mask.view(images, 1, 1, -1).to(query.dtype)
    q, k, v = (t.unflatten(0, (images, -1)).transpose(1, 2) for t in (query, key, value))  # (B, H, ., d)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    out = out if heads is None else out * heads[..., None, None]
    return out.transpose(1, 2).flatten(0, 1)


def _with_bias(query, key, value, lengths, heads, dropout_p, kernel, bias):
    """The bias as one more channel of the keys, which all queries read: what kernels without a bias can do."""
    width = query.shape[-1]
    more = -width % 8 or 8  # flash attention takes widths in steps of 8
    bias = (bias * width**0.5).to(key.dtype)[:, None, None].expand(-1, key.shape[1], 1)
    query = F.pad(torch.cat([query * ((width + more) / width) ** 0.5, torch.ones_like(bias)], -1), (0, more - 1))
    key = F.pad(torch.cat([key, bias * ((width + more) / width) ** 0.5], -1), (0, more - 1))
    out = packed_attention(query, key, F.pad(value, (0, more)), lengths, heads, dropout_p, kernel)
    return out[..., :width]


def _equal_on_cpu(query, key, value, images):
    """Images of equal length: the fused kernel in 32 bit, two batched products in 16 bit, where that measured faster."""
    if query.dtype.itemsize != 2:
        return _equal(query, key, value, images, 0.0)
    query = query * query.shape[-1] ** -0.5
    q, k, v = (t.unflatten(0, (images, -1)).transpose(1, 2) for t in (query, key, value))  # (B, H, n, d)
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(0, 1)


def _loop(query, key, value, lengths, heads, dropout_p, bias, queries=None):
    q, k, v = (t.transpose(0, 1) for t in (query, key, value))  # (H, T, d)
    if query.dtype.itemsize == 2:  # 16-bit products are slow on rows that lie apart; one copy serves all images
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if len(lengths) > 1:
        q, k, v = q.split(queries or lengths, 1), k.split(lengths, 1), v.split(lengths, 1)
    else:
        q, k, v = (q,), (k,), (v,)
    heads = [None] * len(lengths) if heads is None else _kept_heads(heads)
    bias = [None] * len(lengths) if bias is None else bias.to(query.dtype).split(lengths)
    outs = [_one_image(*image, dropout_p) for image in zip(q, k, v, heads, bias, strict=True)]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _one_image(q, k, v, kept, bias, dropout_p):
    """q, k, v (H, n, d) of one image, the heads to compute or None for all, bias (n,) or None -> (n, H, d)."""
    if kept is not None:
        out = torch.zeros_like(q)
        if len(kept):
            out = out.index_copy(0, kept, _one_image(q[kept], k[kept], v[kept], None, bias, dropout_p).transpose(0, 1))
        return out.transpose(0, 1)
    beta, bias = (0, q.new_empty(1)) if bias is None else (1, bias)  # at 0 it is not read
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=beta, alpha=q.shape[-1] ** -0.5)
    weights = scores.softmax(-1)
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return torch.bmm(weights, v).transpose(0, 1)


def _kept_heads(heads):
    """bool (B, H) -> per image the indices of its heads, None where all are on."""
    all_on = heads.all(1).tolist()
    return [None if everything else row.nonzero().squeeze(1) for row, everything in zip(heads, all_on, strict=True)]


def _attend(query, key, value, lengths, dropout_p, kernel):
    """Images of any lengths by "varlen" or "padded"; equal lengths need neither."""
    if len(set(lengths)) == 1:
        return _equal(query, key, value, len(lengths), dropout_p)
    if kernel == "padded" or dropout_p:
        return _padded(query, key, value, lengths, dropout_p)
    starts = torch.tensor([0, *lengths], device=query.device).cumsum(0).int()
    longest = max(lengths)
    return varlen_attn(query.contiguous(), key.contiguous(), value.contiguous(), starts, starts, longest, longest)


def _padded(query, key, value, lengths, dropout_p):
    lengths_t = torch.tensor(lengths, device=query.device)
    valid = torch.arange(max(lengths), device=query.device) < lengths_t[:, None]  # (B, n)
    shape = (*valid.shape, *query.shape[1:])
    q, k, v = (
        t.new_zeros(shape).masked_scatter(valid[..., None, None], t).transpose(1, 2) for t in (query, key, value)
    )
    out = scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None], dropout_p=dropout_p)
    return out.transpose(1, 2)[valid]


def _equal(query, key, value, images, dropout_p):
    q, k, v = (t.unflatten(0, (images, -1)).transpose(1, 2) for t in (query, key, value))  # (B, H, n, d)
    return scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2).flatten(0, 1)
