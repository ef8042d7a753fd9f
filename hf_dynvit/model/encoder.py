"""The forward of all models here: embeddings, then each layer under its gates, and what that cost.

Letters: B images, N tokens ([CLS] first), D channels, H heads, L layers.
"""

from typing import NamedTuple

import torch

from .cost import cost
from .gate import GATINGS, Action
from .host_vit import embed
from .layer import NO_EXPLORATION, NOTHING_DROPPED, run_layer
from .rows import spread_nan
from .tokens import compact, in_full, merge_patches, take_patches


def encode(
    model,
    pixel_values,
    decisions=None,
    gating=None,
    exploration=NO_EXPLORATION,
    interpolate_pos_encoding=None,
    output_attentions=None,
    output_hidden_states=None,
    patches=None,
    merge=False,
):
    """Run a model's embeddings and layers; the arguments are those of `DynViTModel.forward`.

    Returns:
        x (B, N, D) before the final LayerNorm, cost (B,), decisions, hidden_states, attentions.

    Raises:
        ValueError: patches that are not int64 indices for this batch, or, on CPU, the same patch twice.
        IndexError: on CPU, indices of patches that do not exist.
    """
    config = model.config
    gating = gating or ("sample" if model.training else "threshold")
    _check(model, pixel_values, decisions, gating)
    output_attentions = config.output_attentions if output_attentions is None else output_attentions
    wants_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    # The packed layout has no (N, N) matrix; the meaning of the masked one is the same.
    layout = "masked" if output_attentions else model.layout
    if output_attentions and config._attn_implementation != "eager":
        raise ValueError(
            "output_attentions needs eager attention, not "
            f'{config._attn_implementation!r}: call model.set_attn_implementation("eager")'
        )
    x = embed(model.vit.embeddings, pixel_values, bool(interpolate_pos_encoding))
    full_tokens = x.shape[1]
    state = NOTHING_DROPPED
    if patches is not None and merge:
        x, size = merge_patches(x, patches)
        state = state._replace(size=size)
    elif patches is not None:
        x = take_patches(x, patches)
    if layout == "packed":
        x = spread_nan(x)
    num_tokens, num_layers, alone = x.shape[1], len(model.gates), layout == "packed" and decisions is None
    compacts = alone and _compacts(model, wants_hidden)
    plans = alone and gating in ("threshold", "act")
    used, asked, attentions, hidden = [], [], [], [_snapshot(x, 0, num_layers, wants_hidden)]
    for index, (layer, gates) in enumerate(zip(model.vit.layers, model.gates, strict=True)):
        replay = decisions[index] if decisions is not None else None
        how = "open" if gating == "act" and index < exploration.from_layer else gating
        allowed = _allowed(config, index)
        if replay is not None or any(allowed):
            state = read_entry(state, gates, x)
        if plans and state.entry is not None and state.ahead is None:
            state = decide_ahead(state, _gates_ahead(model, index, gating, exploration), gating, exploration)
        before = state
        options = (layer, gates, x, how, layout, replay, exploration, state, allowed, output_attentions)
        if getattr(layer, "gradient_checkpointing", False) and model.training:
            # Gates sample from the global generator, which checkpointing restores for the second forward.
            x, decision, state, weights = layer._gradient_checkpointing_func(run_layer, *options)
        else:
            x, decision, state, weights = run_layer(*options)
        if compacts:
            decision = in_full(decision, before, num_tokens)
            if state.alive is not before.alive:
                x, state = compact(x, state, num_tokens)
        used.append(decision)
        asked.append(how != "open" and (replay is not None or any(allowed)))
        attentions.append(weights)
        hidden.append(_snapshot(x, index + 1, num_layers, wants_hidden))
    merging = (full_tokens - num_tokens) * (num_tokens - 1) * config.hidden_size if merge else 0
    spent = _cost(model, used, asked, x, num_tokens, full_tokens, merging)
    hidden = tuple(hidden) if wants_hidden else None
    attentions = tuple(attentions) if output_attentions else None
    return x, spent, tuple(used), hidden, attentions


def _check(model, pixel_values, decisions, gating):
    if pixel_values is None:
        raise ValueError("You have to specify pixel_values")
    if gating not in GATINGS:
        raise ValueError(f"gating must be one of {GATINGS}, got {gating!r}")
    if decisions is not None and len(decisions) != len(model.gates):
        raise ValueError(f"decisions must have one entry per layer ({len(model.gates)}), got {len(decisions)}")


def _allowed(config, index):
    """Whether the attention and the MLP of a layer may run at all."""
    return (True, True) if config.layer_mask is None else tuple(config.layer_mask[index])


def _gates_ahead(model, index, gating, exploration):
    """The gates, from a layer on, that decide up front all that the host must know of their layer."""
    first = max(index, exploration.from_layer) if gating == "act" else index
    return [
        gates["sublayers"]
        for layer, gates in enumerate(model.gates)
        if layer >= first and all(_allowed(model.config, layer)) and set(gates) == {"sublayers"}
        if gates["sublayers"].upfront and gates["sublayers"].whole
    ]


def _compacts(model, wants_hidden):
    """Whether dropped tokens may leave the stream: nobody reads them any more."""
    reads_all = any(gate.reads_all for gates in model.gates for gate in gates.values())
    return not (reads_all or wants_hidden or torch.is_grad_enabled()) and hasattr(model, "classifier")


def _snapshot(x, index, num_layers, wanted):
    """The token stream as it is now, if hidden state `index` is wanted: all are (`True`), or the list has it."""
    if not wanted or (wanted is not True and index not in {i % (num_layers + 1) for i in wanted}):
        return None
    return x


def _cost(model, decisions, asked, x, num_tokens, full_tokens, merging):
    """(B,) cost of what the layers ran, the gates of layers that were `asked`, and `merging` MACs before the first."""
    gate_macs, alive = merging, None
    for gates, decision, counts in zip(model.gates, decisions, asked, strict=True):
        if counts:
            gate_macs = gate_macs + sum(gate.macs(num_tokens, alive) for gate in gates.values())
        if any(gate.drop for gate in gates.values()) and decision.attention_tokens is not None:
            alive = decision.attention_tokens.detach().sum(1, dtype=torch.float32)
    classes = model.num_labels if hasattr(model, "classifier") else 0
    return cost(model.config, decisions, x.shape[0], num_tokens, classes, gate_macs, x.device, full_tokens)


class Ahead(NamedTuple):
    """What a gate has decided before its layer's turn: its `Action`, and the images (B',) that run the layer."""

    action: Action
    images: torch.Tensor


def read_entry(state, gates, x):
    """The state, with what up-front gates read of x (B, N, D), if this is the first layer that has one."""
    upfront = [gate for gate in gates.values() if gate.upfront]
    if not upfront or state.entry is not None:
        return state
    return state._replace(entry=upfront[0].pool(x).unsqueeze(1))


def decide_ahead(state, gates, gating, exploration):
    """The state with the decisions of `gates`, K block gates, as each would take them in its layer's turn.

    Args:
        state: a `TokenState` with `entry`.
        gating: `"threshold"` or `"act"`, which draws in the order of the layers.
    """
    if not gates:
        return state._replace(ahead={})
    if gating == "act":
        actions = [gate.act(state.entry, exploration=exploration) for gate in gates]
    else:
        actions = [Action(gate(state.entry, gating)) for gate in gates]
    keeps = torch.stack([action.keep[:, 0] for action in actions])  # (K, B)
    counts = to_host(keeps.sum(1))
    # Where the counts are known, the images need no crossing: the kept ones first, in their order.
    order = keeps.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    plan = zip(gates, actions, order, counts, strict=True)
    return state._replace(ahead={gate: Ahead(action, images[:count]) for gate, action, images, count in plan})


def to_host(counts):
    """The one place where a plan waits for the device: (K,) -> list."""
    return counts.tolist()
