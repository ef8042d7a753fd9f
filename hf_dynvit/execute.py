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

from .gate import Exploration, LayerDecisions, TokenState
from .merge import absorb, nearest
from .packed import packed_attention_sublayer, packed_mlp_sublayer, spread_heads


LAYOUTS = ("packed", "masked")
NOTHING_DROPPED = TokenState()
NO_EXPLORATION = Exploration()


def run_layer(
    layer,
    gates,
    x,
    gating,
    layout,
    replay=None,
    exploration=NO_EXPLORATION,
    state=NOTHING_DROPPED,
    allowed=(True, True),
):
    """Run one host layer under the decisions of its gates.

    Args:
        layer: the host's `ViTLayer`.
        gates: `ModuleDict`, first slot of a gate -> gate.
        x: (B, N, D); the packed layout updates it in place where no gradient is recorded.
        gating: one of `GATINGS`.
        layout: one of `LAYOUTS`.
        replay: `LayerDecisions` to use instead of the gates' own, which are evaluated all the same; its `None`s too.
        exploration: how stochastic decisions are drawn.
        state: what earlier layers have dropped for good, which is not applied to what is replayed, and merged.
        allowed: whether attention and MLP may run at all, whatever the gates say; not applied to what is replayed.

    Returns:
        x (B, N, D), the `LayerDecisions` used, the new state, and the attention weights (B, H, N, N) if the attention
        gives them.

    Raises:
        ValueError: sampled straight-through decisions in the packed layout, where they cannot learn.
    """
    packed, alive = layout == "packed", state.alive if replay is None else None
    if replay is None and not any(allowed):
        return x, LayerDecisions(alive, alive, sublayers=_none(x)), state, None
    actions = []
    ahead = _ahead(gates, state)

    def ask(slot, tokens):
        given = getattr(replay, slot) if replay is not None else None
        if slot not in gates or gating == "open":
            return given
        gate = gates[slot]
        if gate.upfront:
            tokens = state.entry
        if ahead is not None:
            actions.append(ahead.action)
            return ahead.action.keep
        if gating == "act":
            actions.append(gate.act(tokens, given, exploration, state.alive if "tokens" in slot else None))
            keep = actions[-1].keep
        else:
            keep = gate(tokens, gating, given, exploration)
        return keep if replay is None else given

    heads = ask("heads", x)
    sublayers = ask("sublayers", x)
    if replay is None and not all(allowed):
        sublayers = (~_none(x) if sublayers is None else sublayers) * torch.tensor(allowed, device=x.device)
    if packed and sublayers is not None and all(allowed) and _skips_whole_images(gates, replay, state):
        _refuse_straight_through(sublayers)
        images = (sublayers[:, 0] > 0.5).nonzero().squeeze(1) if ahead is None else ahead.images
        x = _run_images(layer, x, images)
        return x, _with_policy(LayerDecisions(sublayers=sublayers), actions), state, None
    use_attention, use_mlp = (None, None) if sublayers is None else sublayers.unbind(1)  # (B,)

    normed = layer.layernorm_before(x) if not packed or "attention_tokens" in gates else None
    gate = gates["attention_tokens"] if "attention_tokens" in gates else None
    attention_tokens = _both(ask("attention_tokens", normed), alive)
    if packed:
        _refuse_straight_through(heads, sublayers, attention_tokens)
    into = None if replay is None else replay.into
    if into is not None or (replay is None and gate is not None and gate.merge and gating != "open"):
        x, into, state = _merge(x, normed, attention_tokens, into, state, packed)
        normed = None if packed else layer.layernorm_before(x)
    attention = packed_attention_sublayer if packed else _masked_attention
    x, weights = attention(layer, x, normed, attention_tokens, use_attention, heads, state.size)

    if replay is None and (gate is None or "mlp_tokens" in gate.slots) and "mlp_tokens" not in gates:
        mlp_tokens, normed = attention_tokens if gate is not None else alive, None  # one decision for the whole block
    else:
        normed = layer.layernorm_after(x) if "mlp_tokens" in gates else None
        mlp_tokens = _both(ask("mlp_tokens", normed), alive)
    if gate is not None and gate.drop:
        state = state._replace(alive=attention_tokens)
    if packed:
        _refuse_straight_through(mlp_tokens)
    hide = heads if "heads" in gates and gates["heads"].deactivation == "official" else None
    x = (packed_mlp_sublayer if packed else _masked_mlp)(layer, x, normed, mlp_tokens, use_mlp, hide)
    decisions = LayerDecisions(attention_tokens, mlp_tokens, heads, sublayers, into)
    return x, _with_policy(decisions, actions), state, weights


def _none(x):
    """Neither sub-layer, for all images: (B, 2)."""
    return torch.zeros(x.shape[0], 2, dtype=torch.bool, device=x.device)


def _ahead(gates, state):
    """What was decided for this layer before its turn, or None."""
    return next((state.ahead[gate] for gate in gates.values() if gate in state.ahead), None) if state.ahead else None


def _skips_whole_images(gates, replay, state):
    """Whether the only question is which images run this layer, attention and MLP alike."""
    if (
        set(gates) != {"sublayers"}
        or not gates["sublayers"].whole
        or state.alive is not None
        or state.size is not None
    ):
        return False
    return replay is None or set(replay.keeps()) == {"sublayers"}


def _run_images(layer, x, images):
    """x (B, N, D) after the layer for images (B',), and as it was for the others: one gather for the block."""
    if not len(images):
        return x
    part = x if len(images) == len(x) else x.index_select(0, images)
    part, _ = packed_attention_sublayer(layer, part, None, None, None, None)
    part = packed_mlp_sublayer(layer, part, None, None, None, None)
    if len(images) == len(x):
        return part
    return x.index_copy(0, images, part) if torch.is_grad_enabled() else x.index_copy_(0, images, part)


def _with_policy(decisions, actions):
    """The decisions with the sums of the policies' log-probabilities and entropies, and the mean of their values."""
    actions = [action for action in actions if action.log_prob is not None]
    if not actions:
        return decisions
    values = [action.value for action in actions if action.value is not None]
    return decisions._replace(
        log_prob=sum(action.log_prob for action in actions),
        entropy=sum(action.entropy for action in actions),
        value=sum(values) / len(values) if values else None,
    )


def _merge(x, normed, tokens, into, state, packed):
    """x, where the dropped tokens went (B, N), and the state, after kept tokens have taken on the dropped ones."""
    itself = torch.arange(x.shape[1], device=x.device)
    if into is None:
        keep = tokens > 0.5 if tokens.dtype != torch.bool else tokens
        leave = ~keep if state.alive is None else (state.alive > 0.5) & ~keep
        # In the masked layout the kept ones too: a sampled token learns what would become of it.
        place = nearest(normed, keep, leave if packed else None)
        into = torch.where(leave, place, itself)
        if tokens.requires_grad:
            moving = (1 - tokens) * (place != itself)
            moving = moving if state.alive is None else moving * state.alive.detach()
            x, size = absorb(x, state.size, place, moving)
            return x, into, state._replace(size=size)
    moving = into != itself
    x, size = absorb(x, state.size, into, moving if packed else moving.float())
    return x, into, state._replace(size=size)


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


def _masked_attention(layer, x, normed, tokens, use, heads, size):
    host = layer.attention
    mask = None
    if size is not None:
        mask = _weighted_keys(host, normed, tokens, size)
    elif tokens is not None:
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


def _weighted_keys(host, normed, tokens, size):
    """Additive mask (B, 1, 1, N): a key counts as often as it has patches, and not at all if it is not used."""
    if host.config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            "merged tokens weigh in attention by their size, which needs eager or sdpa attention in the masked "
            f'layout, not {host.config._attn_implementation!r}: call model.set_attn_implementation("sdpa")'
        )
    bias = size.log()
    if tokens is not None:
        bias = bias.masked_fill(tokens.detach() <= 0.5 if tokens.dtype != torch.bool else ~tokens, -torch.inf)
    dtype = torch.get_autocast_dtype(normed.device.type) if torch.is_autocast_enabled(normed.device.type) else None
    return bias[:, None, None].to(dtype or normed.dtype)


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
