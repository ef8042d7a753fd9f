"""One layer run under its decisions, in either layout.

Masking is the meaning (layer_masked.py); packing is the speed: the packed layout gathers the rows that a sub-layer uses
into one (T, D) matrix and computes on that alone (layer_packed.py). A row that is not used passes by unchanged; to those of a skipped sub-layer its bypass is
added, where it has one (bypass.py).

The backbone's own `forward` of a layer runs where no gate decides, if anybody has hooks on the layer or its attention or
has put another class in their place. A layer that its gates run in part is never called: such hooks do not fire there,
those on its linear layers, norms and MLP do, on the rows that are computed.

Letters: B images, N tokens ([CLS] first), D channels, H heads, S numbers per token, T packed rows.
"""

from typing import NamedTuple

import torch

from .bypass import bypass_of
from .cls_attention import with_notes
from .compaction import take_out
from .decisions import UNTOUCHED, Action, LayerDecisions, TokenState, as_action, with_policy
from .gate import Exploration
from .layer_masked import masked_attention_sublayer, masked_bypass, masked_mlp_sublayer
from .layer_packed import (
    packed_attention_sublayer,
    packed_block,
    packed_bypass,
    packed_mlp_sublayer,
    packed_rows,
    rounds,
)
from .layer_reading import packed_reading
from .layer_whole import run_images, runs_whole, skips_whole_images
from .merging import absorb, merge, nearest


LAYOUTS = ("packed", "masked")


class Ahead(NamedTuple):
    """What a gate has decided before its layer's turn."""

    action: Action
    images: torch.Tensor  # (B',) that run the layer
    others: torch.Tensor  # (B - B',) that skip it


class Seen(NamedTuple):
    """What a layer is told beside its tokens; `allowed` and `alive` are not applied to what is replayed."""

    gating: str  # one of `GATINGS`
    packed: bool
    replay: (
        LayerDecisions | None
    )  # to use instead of the gates' own, which are evaluated all the same; its `None`s too
    exploration: Exploration
    state: TokenState  # of the tokens
    allowed: tuple  # whether attention and MLP may run at all, whatever the gates say
    wants_weights: bool  # of the attention, which a layer that is called keeps to itself
    entry: torch.Tensor | None  # (B, 1, D), what gates with `upfront` read
    ahead: Ahead | None  # what is decided of this layer already
    compacts: bool  # whether tokens that are dropped leave the stream
    reads: int = 0  # protected tokens that alone are wanted of the last layer (layer_reading.py); 0: all are
    notes: tuple = ()  # what to note of the attention for gates of later layers, some of `NOTES`


def run_layer(host, layer, gates, x, seen):
    """Run one layer under the decisions of its gates; nothing is written into x.

    Args:
        gates: `ModuleDict`, first slot of a gate -> gate. x: (B, N, D). seen: a `Seen`.

    Returns:
        x (B, N, D), of a packed layer that `reads` the protected tokens alone, the `LayerDecisions` used, the new `TokenState`, and the attention weights (B, H, N, N) if the
        attention gives them.

    Raises:
        ValueError: sampled straight-through decisions in the packed layout, where they cannot learn.
    """
    gating, packed, replay, exploration, state, allowed, wants_weights, entry, ahead, compacts, reads, notes = seen
    alive = state.alive if replay is None else None
    bypasses, add = bypass_of(gates), packed_bypass if packed else masked_bypass
    if replay is None and not any(allowed):
        off = _none(x)
        use = [False] * len(x) if packed else off[:, 0]
        x = _skip(bypasses, add, x[:, : reads or None], None if reads else alive, use)
        return x, LayerDecisions(alive, alive, sublayers=off), state, None
    if not wants_weights and runs_whole(gates, seen) and not host.is_own(layer):
        return host.call(layer, x, state.side), LayerDecisions(), state, None
    parts, actions = host.parts(layer), {}

    def ask(slot, tokens):
        given = getattr(replay, slot) if replay is not None else None
        if slot not in gates or gating == "open":
            return given
        gate, known = gates[slot], state if "tokens" in slot else UNTOUCHED
        if ahead is not None:
            actions[slot] = ahead.action
            return ahead.action.keep
        if gate.upfront:
            tokens = entry
        if gating == "act":
            actions[slot] = gate.act(tokens, given, exploration, known)
        else:
            actions[slot] = as_action(gate(tokens, gating, given, exploration, known))
        return actions[slot].keep if replay is None else given

    heads = ask("heads", x)
    sublayers = ask("sublayers", x)
    if replay is None and not all(allowed):
        sublayers = (~_none(x) if sublayers is None else sublayers) * torch.tensor(allowed, device=x.device)
    images_alone = packed and sublayers is not None and all(allowed) and not (notes or reads)
    if images_alone and skips_whole_images(gates, replay, state):
        _refuse_straight_through(sublayers)
        keep = sublayers[:, 0] > 0.5
        before, images = x, keep.nonzero().squeeze(1) if ahead is None else ahead.images
        x = run_images(parts, x, images, state.side)
        if bypasses:
            others = (~keep).nonzero().squeeze(1) if ahead is None else ahead.others
            some = before.index_select(0, others)
            x = x.index_add(0, others, bypasses[0](some).to(x.dtype))
        return x, with_policy(LayerDecisions(sublayers=sublayers), actions), state, None
    use_attention, use_mlp = (None, None) if sublayers is None else sublayers.unbind(1)  # (B,)

    normed = parts.attention_norm(x) if not packed or "attention_tokens" in gates else None
    gate = gates["attention_tokens"] if "attention_tokens" in gates else None
    attention_tokens = _both(ask("attention_tokens", normed), alive)
    if packed:
        _refuse_straight_through(heads, sublayers, attention_tokens)
        if sublayers is not None:
            use_attention, use_mlp = (sublayers > 0.5).T.tolist()  # one way to the host for both
    decides = gate is not None and replay is None and gating != "open"
    if "attention_tokens" in actions and actions["attention_tokens"].halting is not None:
        state = state._replace(halting=actions["attention_tokens"].halting)
    into = None if replay is None else replay.into
    if decides and gate.merge:
        into = actions["attention_tokens"].into
        if into is None:
            into = nearest(normed, attention_tokens, state, packed, host.index())
    weighs = gate is None or gate.weighs
    tokens, taken = attention_tokens, None  # of the stream as it is from here on
    if decides and gate.drop and compacts:
        keep = tokens if tokens.dtype == torch.bool else tokens > 0.5
        taken, state, into = take_out(x, keep, into, state, rounds(parts, x), weighs)
        tokens = state.alive
        if taken is not None:
            normed = None
            if use_attention != use_mlp or not all(use_mlp or [True]):  # not all images run the block
                x, taken = taken.stream(taken.rows), None
    elif into is not None:
        if decides:
            x, size, into = merge(x, tokens, into, state, packed)
        else:
            x, size = absorb(x, state.size, into, packed)
        size = size if weighs else state.size
        state, normed = state._replace(size=size), None if packed else parts.attention_norm(x)
    hide = heads if "heads" in gates and gates["heads"].hides_channels else None
    weights, together = None, _one_decision(gates, replay)
    entering = x
    if reads:
        noted, use = None, (use_attention, use_mlp)
        mlp_tokens = attention_tokens if together else _both(replay and replay.mlp_tokens, alive)
        x = packed_reading(parts, x, taken, normed, tokens, use, heads, state, hide, bypasses, reads)
    elif taken is not None:
        mlp_tokens = attention_tokens
        rows, noted = packed_rows(parts, taken.rows, None, taken.used, heads, state, hide, notes)
        x = taken.stream(rows)
    elif packed and together and use_attention == use_mlp:
        mlp_tokens = attention_tokens
        x, noted = packed_block(parts, x, normed, tokens, use_mlp, heads, state, hide, notes)
        x = _skip(bypasses, add, x, tokens, use_mlp)
    else:
        attention = (parts, x, normed, tokens, use_attention, heads, state, notes)
        if packed:
            x, noted = packed_attention_sublayer(*attention)
        else:
            x, weights, noted = masked_attention_sublayer(*attention)
        if len(bypasses) == 2:
            x = add(bypasses[0], entering, x, tokens, use_attention)
        middle = x
        normed = parts.mlp_norm(x) if "mlp_tokens" in gates else None
        mlp_tokens = attention_tokens if together else _both(ask("mlp_tokens", normed), alive)
        if packed:
            _refuse_straight_through(mlp_tokens)
        rows = tokens if together else mlp_tokens
        if packed:
            x = packed_mlp_sublayer(parts, x, normed, rows, use_mlp, state, hide)
        else:
            x = masked_mlp_sublayer(parts, x, normed, rows, use_mlp, hide)
        if len(bypasses) == 2:
            x = add(bypasses[1], middle, x, rows, use_mlp)
        elif bypasses:
            x = add(bypasses[0], entering, x, tokens, _either(use_attention, use_mlp))
    state = with_notes(state, noted, x.shape[:2])
    if gate is not None and gate.drop and not compacts:
        state = state._replace(alive=attention_tokens)
    decisions = LayerDecisions(attention_tokens, mlp_tokens, heads, sublayers, into)
    return x, with_policy(decisions, actions), state, weights


def _one_decision(gates, replay):
    """Whether attention and MLP are given the same tokens."""
    if "mlp_tokens" in gates:
        return False
    if replay is not None:
        return replay.mlp_tokens is replay.attention_tokens
    return "attention_tokens" not in gates or "mlp_tokens" in gates["attention_tokens"].slots


def _none(x):
    """Neither sub-layer, for all images: (B, 2)."""
    return torch.zeros(x.shape[0], 2, dtype=torch.bool, device=x.device)


def _skip(bypasses, add, x, tokens, use):
    """x (B, N, D) with what is added instead of both sub-layers for the images that `use` skips; others as they were."""
    for bypass in bypasses:
        x = add(bypass, x, x, tokens, use)
    return x


def _either(one, other):
    """Which images use one of the two sub-layers or both: as either is given, (B,), a list of bools, or None."""
    if isinstance(one, list):
        return [a or b for a, b in zip(one, other, strict=True)]
    return None if one is None else torch.maximum(one, other)  # between equals it halves the gradient


def _both(keep, alive):
    """Tokens (B, N) that are kept and alive; None keeps everything."""
    if keep is None or alive is None:
        return alive if keep is None else keep
    return keep & alive if keep.dtype == alive.dtype == torch.bool else keep * alive


def _refuse_straight_through(*keeps):
    if any(keep is not None and keep.requires_grad for keep in keeps):
        raise ValueError(
            "straight-through gates learn from what they drop, which the packed layout does not compute: "
            'set model.layout = "masked", or let the gates decide permanently with gating="threshold"'
        )
