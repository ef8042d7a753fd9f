"""One ViT layer run under its decisions, in either layout.

Masking is the meaning: the masked layout computes everything on full tensors and multiplies by 0 or 1, which is what
straight-through gradients flow through. Packing is the speed: the packed layout gathers the rows that a sub-layer uses
into one (T, D) matrix, computes on that alone and adds the result back (packed.py). A row that is not used passes by
unchanged.

Letters: B images, N tokens ([CLS] first), D channels, H heads, d channels of a head, T packed rows.
"""

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward

from .gate import LayerDecisions
from .packed import packed_attention_sublayer, packed_mlp_sublayer, spread_heads


LAYOUTS = ("packed", "masked")


def run_layer(layer, gates, x, gating, layout, replay=None, noise=1.0, alive=None):
    """Run one host layer under the decisions of its gates.

    Args:
        layer: the host's `ViTLayer`.
        gates: `ModuleDict`, first slot of a gate -> gate.
        x: (B, N, D); the packed layout updates it in place where no gradient is recorded.
        gating: one of `GATINGS`.
        layout: one of `LAYOUTS`.
        replay: `LayerDecisions` to use instead of the gates' own, which are evaluated all the same; its `None`s too.
        noise: scale of the gates' sampling noise.
        alive: (B, N) tokens that no earlier layer has dropped for good, or None; not applied to what is replayed.

    Returns:
        x (B, N, D), the `LayerDecisions` used, the tokens still alive, and the attention weights (B, H, N, N) if the
        attention gives them.

    Raises:
        ValueError: sampled straight-through decisions in the packed layout, where they cannot learn.
    """

    def ask(slot, tokens):
        given = getattr(replay, slot) if replay is not None else None
        if slot not in gates or gating == "open":
            return given
        keep = gates[slot](tokens, gating, given, noise)
        return keep if replay is None else given

    attention, mlp = (
        (packed_attention_sublayer, packed_mlp_sublayer) if layout == "packed" else (_masked_attention, _masked_mlp)
    )
    heads = ask("heads", x)
    sublayers = ask("sublayers", x)
    use_attention, use_mlp = (None, None) if sublayers is None else sublayers.unbind(1)  # (B,)

    normed = layer.layernorm_before(x) if layout == "masked" or "attention_tokens" in gates else None
    attention_tokens = _both(ask("attention_tokens", normed), None if replay is not None else alive)
    if layout == "packed":
        _refuse_straight_through(heads, sublayers, attention_tokens)
    x, weights = attention(layer, x, normed, attention_tokens, use_attention, heads)

    gate = gates["attention_tokens"] if "attention_tokens" in gates else None
    if replay is None and (gate is None or "mlp_tokens" in gate.slots) and "mlp_tokens" not in gates:
        mlp_tokens, normed = attention_tokens if gate is not None else alive, None  # one decision for the whole block
    else:
        normed = layer.layernorm_after(x) if "mlp_tokens" in gates else None
        mlp_tokens = _both(ask("mlp_tokens", normed), None if replay is not None else alive)
    if gate is not None and gate.drop:
        alive = attention_tokens
    if layout == "packed":
        _refuse_straight_through(mlp_tokens)
    hide = heads if "heads" in gates and gates["heads"].deactivation == "official" else None
    x = mlp(layer, x, normed, mlp_tokens, use_mlp, hide)
    return x, LayerDecisions(attention_tokens, mlp_tokens, heads, sublayers), alive, weights


def _both(keep, alive):
    """Tokens (B, N) that are kept and alive; None keeps everything."""
    if keep is None or alive is None:
        return alive if keep is None else keep
    return keep & alive if keep.dtype == alive.dtype == torch.bool else keep * alive


def _refuse_straight_through(*keeps):
    if any(keep is not None and keep.requires_grad for keep in keeps):
        raise ValueError(
            "straight-through gates learn from what they drop, which the packed layout does not compute: "
            'set model.layout = "masked", or let the gates decide for good with gating="threshold"'
        )


def _masked_attention(layer, x, normed, tokens, use, heads):
    host = layer.attention
    mask = None
    if tokens is not None:
        mask = create_bidirectional_mask(host.config, normed, tokens > 0.5)  # keys; the rows are multiplied below
    q, k, v = (
        projection(normed).unflatten(-1, (-1, host.head_dim)).transpose(1, 2)  # (B, H, N, d)
        for projection in (host.q_proj, host.k_proj, host.v_proj)
    )
    function = ALL_ATTENTION_FUNCTIONS.get_interface(host.config._attn_implementation, eager_attention_forward)
    dropout = host.attention_dropout if host.training else 0.0
    out, weights = function(host, q, k, v, mask, dropout=dropout, scaling=host.scaling)  # (B, N, H, d)
    if heads is not None:
        out = out * heads[:, None, :, None].to(out.dtype)
    out = layer.dropout(host.o_proj(out.flatten(2)))
    return x + _times(out, tokens, use), weights


def _masked_mlp(layer, x, normed, tokens, use, hide):
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
