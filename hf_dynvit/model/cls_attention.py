"""What a layer notes for the gates of the next: how much [CLS] attends to each token, and how long its values are.

It is computed only where a gate reads it, from the queries and keys that the layer has anyway; fused attention keeps its
weights to itself.

Letters: B images, N tokens ([CLS] first), H heads, d channels of a head, T packed rows.
"""

from typing import NamedTuple

import torch

from .rows import no_autocast


NOTES = ("attention", "values")  # fields of `TokenState`


class Noted(NamedTuple):
    """Numbers of the rows that took part in an attention."""

    attention: torch.Tensor  # (T,), sums to 1 over an image
    values: torch.Tensor | None  # (T,)
    index: torch.Tensor | None  # (T,) which rows of the stream they are; None: all


def note_rows(q, k, v, used, bias, notes):
    """`Noted` of packed rows q, k, v (T, H, d), which `used` they are; bias (T,) of each key, or None."""
    starts = [0]
    for length in used.lengths[:-1]:
        starts.append(starts[-1] + length)
    if len(set(used.lengths)) == 1:
        keys = k.unflatten(0, (len(starts), -1)).transpose(1, 2)  # (images, H, n, d)
        queries = q.unflatten(0, (len(starts), -1))[:, :1].transpose(1, 2)
        attention = cls_attention(queries, keys, None if bias is None else bias.unflatten(0, (len(starts), -1)))
        attention = attention.flatten()
    else:
        biases = [None] * len(starts) if bias is None else bias.split(used.lengths)
        plan = zip(starts, k.transpose(0, 1).split(used.lengths, 1), biases, strict=True)
        attention = torch.cat([cls_attention(q[start].unsqueeze(1), keys, one) for start, keys, one in plan])
    return Noted(attention, value_length(v) if "values" in notes else None, used.index)


def cls_attention(query, keys, bias):
    """Attention weights of one query (..., H, 1, d) on keys (..., H, n, d), mean over heads: (..., n); no gradient.

    Args:
        bias: (..., n) added to the scores of each key, or None.
    """
    query, keys = query.detach().float(), keys.detach().float()
    with no_autocast(keys):
        scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # (..., H, 1, n)
    if bias is not None:
        scores = scores + bias.float()[..., None, None, :]
    return scores.softmax(-1).mean(-3).squeeze(-2)


def value_length(values):
    """Length of the values (..., H, d) of all heads side by side: (...); no gradient."""
    return torch.linalg.vector_norm(values.detach().flatten(-2).float(), dim=-1)


def with_notes(state, noted, shape):
    """The `TokenState` of a stream of that shape (B, N) with what was `Noted`; other rows keep what is known, or 0."""
    if noted is None:
        return state
    found = {}
    for name in NOTES:
        rows = getattr(noted, name)
        if rows is None:
            continue
        if noted.index is not None:
            old = getattr(state, name)
            old = rows.new_zeros(shape) if old is None else old
            rows = old.flatten().index_copy(0, noted.index, rows)
        found[name] = rows.view(shape)
    return state._replace(**found)
