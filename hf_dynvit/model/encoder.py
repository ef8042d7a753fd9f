"""The forward of all models here: embeddings, then each layer under its gates, and what that cost.

Lookahead: gates with `upfront` all read the tokens that enter the first of them. In the packed layout the CPU must know
which images run a layer, and waits for a GPU at each one; deciding all layers first needs one synchronisation instead.

Letters: B images, N tokens ([CLS] first), D channels, H heads, L layers, K gates.
"""

from typing import NamedTuple

import torch

from .cascade import view
from .cls_attention import NOTES
from .compaction import in_full
from .cost import cost, merging_macs, noting_macs
from .decisions import TokenState, as_action
from .gate import GATINGS, NO_EXPLORATION
from .layer import Ahead, Seen, run_layer
from .layer_reading import reads_alone
from .resolution import resized, tokens_dense
from .rows import spread_nan
from .tokens import merge_patches, take_patches


class Encoded(NamedTuple):
    """What `encode` gives: the fields of the models' outputs, and in place of features the tokens before the final norm."""

    x: torch.Tensor  # (B, N, D), maybe without tokens that were dropped, or that nobody reads
    cost: torch.Tensor
    decisions: tuple
    hidden_states: tuple | None
    attentions: tuple | None
    state: TokenState  # of x


def encode(
    model,
    pixel_values=None,
    decisions=None,
    gating=None,
    exploration=NO_EXPLORATION,
    budget=None,
    look=None,
    interpolate_pos_encoding=None,
    output_attentions=None,
    output_hidden_states=None,
    patches=None,
    merge_patches=False,
):
    """Run a model's embeddings and layers on pixel_values (B, channels, height, width).

    Args:
        decisions: L `LayerDecisions` to replay instead of the gates' own.
        gating: how gates decide, one of `GATINGS`; sample in training, else threshold.
        exploration: how stochastic decisions are drawn; a shift in it counts in place of any budget.
        budget: mean cost to decide for, of a model with a table of budgets and within its reach: a number, or floats (B,),
            one for each image. None: `config.budget`.
        look: which look of a cascade (cascade.py), counted from 0; None: the last.
        interpolate_pos_encoding: accept another image size than the configured one.
        output_attentions: needs eager attention, and runs the masked layout.
        output_hidden_states: collect the token stream before and after each layer; a list of indices collects those
            alone (None stands for the others). Tokens that drop then stay in the stream; the cost is that of a forward without.
        patches: int64 indices of the patches to run on, counted from 0 without [CLS], each at most once: (K,) for all
            images or (B, K) for each. The others are gone before the first layer, the token stream has N = 1 + K tokens,
            and the cost stays relative to the dense model on all patches.
        merge_patches: the others leave their content to the kept patch most like them, which then counts as often as it
            has patches (eager or sdpa attention in the masked layout); without patches it says nothing.

    Raises:
        ValueError: a budget without a table or out of its reach; a look that there is not; patches that are not int64 indices for this batch, of
            images that are resized, or, on CPU, the same patch twice.
        IndexError: on CPU, indices of patches that do not exist.
    """
    config, host, backbone = model.config, model.host, model.base_model
    gating = gating or ("sample" if model.training else "threshold")
    _check(model, pixel_values, decisions, gating)
    output_attentions = config.output_attentions if output_attentions is None else output_attentions
    wants_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    # The packed layout has no (N, N) matrix; the meaning of the masked one is the same.
    packed = not output_attentions and model.layout == "packed"
    if output_attentions and config._attn_implementation != "eager":
        raise ValueError(
            "output_attentions needs eager attention, not "
            f'{config._attn_implementation!r}: call model.set_attn_implementation("eager")'
        )
    full_tokens = None if config.cascade is None else tokens_dense(config, pixel_values.shape[2:])
    resolution, shift = view(config, pixel_values.shape[0], look, budget)
    if resolution is not None:
        if patches is not None:
            raise ValueError(f"patches cannot be chosen of images that are resized, resolution {resolution}")
        full_tokens, interpolate_pos_encoding = tokens_dense(config, pixel_values.shape[2:]), True
        pixel_values = resized(pixel_values, resolution)
    x, side = host.embed(backbone, pixel_values, bool(interpolate_pos_encoding))
    shift = shift if exploration.shift is None else exploration.shift
    exploration = exploration._replace(shift=shift, look=-1 if look is None else look)
    embedded, state, entry, ahead = x.shape[1], TokenState(side=side), None, None
    if patches is not None:
        x, state = _choose(host, x, side, patches, merge_patches)
    if packed:
        x = spread_nan(x)
    num_tokens, num_layers, alone = x.shape[1], len(model.gates), packed and decisions is None
    compacts = alone and can_compact(model, wants_hidden)
    plans = alone and gating in ("threshold", "act")
    notes = layer_notes(model, decisions is not None, gating, exploration)
    few = reads_alone(model, decisions)
    reads = len(host.protected) if few and packed and not wants_hidden else 0
    used, attentions, hidden = [], [], [_snapshot(x, 0, num_layers, wants_hidden)]
    merging = (embedded - num_tokens) * (num_tokens - len(host.protected)) * x.shape[2] if merge_patches else 0
    gate_macs = torch.full(x.shape[:1], float(merging), device=x.device)
    for index, (layer, gates) in enumerate(zip(host.layers(backbone), model.gates, strict=True)):
        replay = decisions[index] if decisions is not None else None
        how = _how(gating, exploration, index)
        allowed = _allowed(config, index)
        asks = replay is not None or any(allowed)
        if entry is None and asks and (upfront := [gate for gate in gates.values() if gate.upfront]):
            entry = upfront[0].pool(x).unsqueeze(1)
            if plans:
                ahead = _decide_ahead(_gates_ahead(model, index, gating, exploration), entry, gating, exploration)
        decided = ahead.get(index) if ahead else None
        told = exploration, state, allowed, output_attentions, entry, decided, compacts
        seen = Seen(how, packed, replay, *told, reads if index + 1 == num_layers else 0, notes[index])
        before, length = state, x.shape[1]
        if getattr(layer, "gradient_checkpointing", False) and model.training:
            # Gates sample from the global generator, which checkpointing restores for the second forward.
            result = layer._gradient_checkpointing_func(run_layer, host, layer, gates, x, seen)
        else:
            result = run_layer(host, layer, gates, x, seen)
        x, decision, state, weights = result
        if compacts:
            decision = in_full(decision, before, state)
        used.append(decision)
        if gates and how != "open" and asks:
            alive = _alive(before, length)
            gate_macs = gate_macs + sum(gate.macs(num_tokens, alive) for gate in gates.values())
        if decision.into is not None and not any(gate.pairs for gate in gates.values()):
            gate_macs = gate_macs + merging_macs(config, decision)
        if notes[index]:
            gate_macs = gate_macs + noting_macs(config, decision, num_tokens)
        attentions.append(weights)
        hidden.append(_snapshot(x, index + 1, num_layers, wants_hidden))
    classes = model.num_labels if hasattr(model, "classifier") else 0
    given = config, used, x.shape[0], num_tokens, classes, gate_macs, x.device
    spent = cost(*given, full_tokens or embedded, model.gates, embedded, not few)
    hidden = tuple(hidden) if wants_hidden else None
    attentions = tuple(attentions) if output_attentions else None
    return Encoded(x, spent, tuple(used), hidden, attentions, state)


def _check(model, pixel_values, decisions, gating):
    if pixel_values is None:
        raise ValueError("You have to specify pixel_values")
    if gating not in GATINGS:
        raise ValueError(f"gating must be one of {GATINGS}, got {gating!r}")
    if decisions is not None and len(decisions) != len(model.gates):
        raise ValueError(f"decisions must have one entry per layer ({len(model.gates)}), got {len(decisions)}")


def _choose(host, x, side, patches, merges):
    """x and `TokenState` of the chosen patches and the protected tokens, which must come first."""
    if not host.protects_first():
        raise ValueError(f"patches can only be chosen where protected tokens come first, not at {host.protected}")
    first = len(host.protected)
    side = None if side is None else take_patches(side, patches, first)
    if not merges:
        return take_patches(x, patches, first), TokenState(side=side)
    x, size = merge_patches(x, patches, first)
    return x, TokenState(size=size, side=side)


def _how(gating, exploration, index):
    """How the gates of a layer decide: policies before `from_layer` are open."""
    return "open" if gating == "act" and index < exploration.from_layer else gating


def layer_notes(model, replayed=False, gating="threshold", exploration=NO_EXPLORATION):
    """For each layer what it notes of its attention: what gates read of the last one before them that may attend."""
    notes, source = [()] * len(model.gates), None
    for index, gates in enumerate(model.gates):
        allowed = (True, True) if replayed else _allowed(model.config, index)
        if source is not None and any(allowed) and _how(gating, exploration, index) != "open":
            read = {name for gate in gates.values() for name in NOTES if getattr(gate, f"reads_{name}")}
            notes[source] = tuple(sorted(read.union(notes[source])))
        source = index if allowed[0] else source
    return notes


def _allowed(config, index):
    """Whether the attention and the MLP of a layer may run at all."""
    return (True, True) if config.layer_mask is None else tuple(config.layer_mask[index])


def can_compact(model, wants_hidden):
    """Whether dropped tokens may leave the stream: only the classifier reads it, and protected ones keep their places."""
    if wants_hidden or torch.is_grad_enabled() or not hasattr(model, "classifier") or not model.host.protects_first():
        return False
    return not any(gate.reads_all for gates in model.gates for gate in gates.values())


def _snapshot(x, index, num_layers, wanted):
    """The token stream as it is now, if hidden state `index` is wanted: all are (`True`), or the list has it."""
    if wanted and wanted is not True and (beyond := [i for i in wanted if not -num_layers - 1 <= i <= num_layers]):
        raise IndexError(f"hidden states are 0..{num_layers}, or counted from the last one, got {beyond}")
    if not wanted or (wanted is not True and index not in {i % (num_layers + 1) for i in wanted}):
        return None
    return x


def _alive(state, length):
    """Tokens of each image that are still there in a stream of this `length`: (B,), or one number; None: all."""
    if state.alive is not None:
        return state.alive.detach().sum(1, dtype=torch.float32)
    return None if state.places is None else length


def _gates_ahead(model, index, gating, exploration):
    """Layer -> gate, from a layer on, of the gates with `upfront` that decide all that the CPU must know of their layer."""
    first = max(index, exploration.from_layer) if gating == "act" else index
    return {
        layer: gates["sublayers"]
        for layer, gates in enumerate(model.gates)
        if layer >= first and all(_allowed(model.config, layer)) and set(gates) == {"sublayers"}
        if gates["sublayers"].upfront and gates["sublayers"].whole
    }


def _decide_ahead(gates, entry, gating, exploration):
    """Layer -> `Ahead`, as each of K gates (layer -> gate) would decide in its layer's turn.

    Args:
        entry: (B, 1, D), what they read.
        gating: `"threshold"` or `"act"`, which draws in the order of the layers.
    """
    if not gates:
        return {}
    if gating == "act":
        actions = [gate.act(entry, exploration=exploration) for gate in gates.values()]
    else:
        actions = [as_action(gate(entry, gating, exploration=exploration)) for gate in gates.values()]
    keeps = torch.stack([action.keep[:, 0] for action in actions])  # (K, B)
    counts = to_host(keeps.sum(1))
    # Where the counts are known, the images need no crossing: the kept ones first, in their order.
    order = keeps.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    plan = zip(gates, actions, order, counts, strict=True)
    return {layer: Ahead(action, images[:count], images[count:]) for layer, action, images, count in plan}


def to_host(counts):
    """The one place where a plan waits for the device: (K,) -> list."""
    return counts.tolist()
