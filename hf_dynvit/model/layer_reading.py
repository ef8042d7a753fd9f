"""The last layer of a classifier that reads the protected tokens alone ([CLS]): the others are only attended to.

Keys and values of all tokens are computed; queries, scores, the output projection and the MLP of the protected ones. Logits
stay what they are in the whole layer, whose other outputs nobody reads. CaiT (Touvron et al., 2021, class-attention) is built
so; here it is a way to run any ViT.

Letters: B images, N tokens, P protected ones, D channels, H heads, d channels of a head, T packed rows.
"""

import torch

from .configuration_dynvit import check_last_layer
from .decisions import UNTOUCHED
from .layer_packed import heads_on, packed_bypass, packed_mlp_sublayer, project, residual, rows_in_use
from .packed_attention import few_attention
from .rows import take_rows, take_values


def reads_alone(model, decisions=None):
    """Whether a model computes the protected tokens alone in its last layer, under `decisions` (L of them) that are replayed or None.

    Not where somebody looks at the layer by hooks or has put another in its place.

    Raises:
        ValueError: a host whose classifier reads others, or a gate of the last layer that reads what is not computed.
    """
    check_last_layer(model.config.last_layer)
    last = model.host.layers(model.base_model)[-1]
    if model.config.last_layer is None or not hasattr(model, "classifier") or not model.host.is_own(last):
        return False
    if not model.host.reads_protected:
        raise ValueError(
            "last_layer 'read' is for classifiers that read protected tokens alone, this one reads others"
        )
    if "mlp_tokens" in model.gates[-1]:
        gate = type(model.gates[-1]["mlp_tokens"]).__name__
        raise ValueError(
            f"last_layer 'read' leaves {gate} of the last layer no tokens to decide: leave that layer out"
        )
    keeps = () if decisions is None else (decisions[-1].attention_tokens, decisions[-1].mlp_tokens)
    return all(keep is None or bool((keep[:, model.host.index()] > 0.5).all()) for keep in keeps)


def packed_reading(parts, x, taken, normed, tokens, use, heads, state, hide, bypasses, first):
    """The protected tokens (B, P, D) after the layer, of x (B, N, D).

    Args:
        taken: the `Taken` of x in place of its rows, if all images run the layer. normed: x after the norm if a gate has read it.
        tokens: (B, N) that attention sees; None: all. use: lists of B bools, or None: which images run attention, and the MLP.
        heads, hide: (B, H) or None, as in `packed_block`. state: the `TokenState`. bypasses: what is added in place of a
            sub-layer, or of both. first: P.
    """
    use_attention, use_mlp = use
    entering = top = x[:, :first]
    used = rows_in_use(parts, x, tokens, use_attention, state) if taken is None else taken.used
    if used.lengths:
        rows = take_rows(x, used) if taken is None else taken.rows
        h = parts.attention_norm(rows) if normed is None else take_rows(normed, used)
        out = _attention(parts, rows, h, used, heads, state, first).to(x.dtype)
        top = out if used.images is None else top.index_copy(0, used.images, out)
    if len(bypasses) == 2:
        top = packed_bypass(bypasses[0], entering, top, None, use_attention)
    middle = top
    top = packed_mlp_sublayer(parts, top, None, None, use_mlp, UNTOUCHED, hide)
    if len(bypasses) == 2:
        return packed_bypass(bypasses[1], middle, top, None, use_mlp)
    if bypasses and use_attention is not None:
        either = [one or other for one, other in zip(use_attention, use_mlp, strict=True)]
        return packed_bypass(bypasses[0], entering, top, None, either)
    return top


def _attention(parts, rows, h, used, heads, state, first):
    """Protected rows (images, P, D) plus attention to all rows (T + padding, D) of their image; h: those after the norm."""
    lengths = torch.tensor(used.lengths, device=h.device)
    at = (lengths.cumsum(0) - lengths).unsqueeze(1) + torch.arange(first, device=h.device)  # (images, P)
    q = parts.projections[0](h.index_select(0, at.flatten())).unflatten(1, (-1, parts.head_dim))  # (images * P, H, d)
    k, v = project(parts.projections[1:], parts.head_dim, h, used)  # (T, H, d)
    bias = None if state.size is None else take_values(state.size, used).log()
    out = few_attention(q, k, v, used.lengths, heads_on(heads, used), parts.dropout, bias)
    out = residual(parts.residuals[0], parts.out(out.flatten(1)))
    return (rows.index_select(0, at.flatten()) + out).unflatten(0, at.shape)
