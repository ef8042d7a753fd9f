"""Uses of a static mask: a checkpoint without its unused layers, or the start of a policy."""

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from ..model.budgets import shift_gates, shift_of
from ..model.bypass import bypass_of
from ..model.gate import cut
from ..model.gate_block import BlockGate
from ..model.gates import build_gate
from ..model.modeling_dynvit import DynViTForImageClassification


SAVED_WITH = ("model_type", "architectures", "transformers_version", "auto_map", "_name_or_path")
NOT_OF_LAYERS = (*SAVED_WITH, "gates", "layer_mask", "budget", "budget_shifts", "last_layer")
# From the logit of the threshold: what the mask keeps is drawn in 95 % of the cases, what it skips in 12 %, where that is 0.
INSIDE, OUTSIDE = 3.0, -2.0


def burn_in(model):
    """A new model without the layers that `config.layer_mask` switches off entirely; it gives the same logits.

    Its cost is relative to the smaller dense model. Where neither gates nor half-used layers are left, nor a size of images or a last
    layer of its own, the result is a plain `ViTForImageClassification`.

    A mean that a left-out layer adds instead (its bypass) goes into the bias of what is added before it, where that is
    added to every token of every image.

    Args:
        model: a `DynViTForImageClassification` with a `layer_mask`.

    Raises:
        ValueError: no mask to burn in, or a bypass that no other layer can hold.
    """
    config = model.config
    if config.layer_mask is None:
        raise ValueError("the model has no layer_mask to burn in: search for one, or set config.layer_mask")
    kept = [layer for layer, pair in enumerate(config.layer_mask) if any(pair)]
    place = {old: new for new, old in enumerate(kept)}
    gates = []
    for entry in config.gates or []:
        layers = [place[layer] for layer in entry.get("layers", range(config.num_hidden_layers)) if layer in place]
        if layers:
            gates.append({**entry, "layers": layers})
    mask = [list(config.layer_mask[layer]) for layer in kept]
    whole = all(map(all, mask))
    # The layer that is the last now may have a gate that needs all of its tokens.
    last_layer = None if "mlp_tokens" in model.gates[kept[-1]] else config.last_layer
    fields = {name: value for name, value in config.to_dict().items() if name not in NOT_OF_LAYERS}
    fields["num_hidden_layers"] = len(kept)
    if whole and not (gates or config.resolution or last_layer):
        small = ViTForImageClassification(ViTConfig(**fields))
    else:
        dynamic = {"gates": gates or None, "layer_mask": None if whole else mask}
        dynamic |= {"budget": config.budget, "last_layer": last_layer}
        small = DynViTForImageClassification(type(config)(**fields, **dynamic))
    small.load_state_dict(_renumbered(model.state_dict() | _folded(model), place), strict=True)
    if gates and config.budget_shifts is not None:  # costs are relative to another dense model now
        shift_gates(small.learned_gates(), shift_of(config, 1))
    small.set_attn_implementation(config._attn_implementation)
    return small.to(model.dtype).to(model.device).eval()


def _folded(model):
    """Name -> tensor, of the biases that take on the means which layers that the mask switches off add."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers, mask, changed = model.host.layers(model.base_model), model.config.layer_mask, {}
    for layer, gates in enumerate(model.gates):
        means = [bypass for bypass in bypass_of(gates) if not bypass.adds_nothing()]
        if any(mask[layer]) or not means:
            continue
        before = next((kept for kept in reversed(range(layer)) if any(mask[kept])), None)
        bias = (
            None
            if before is None or model.gates[before]
            else _last_bias(model.host.parts(layers[before]), mask[before])
        )
        if bias is None or {bypass.kind for bypass in means} != {"mean"}:
            kinds = sorted({bypass.kind for bypass in means})
            raise ValueError(
                f"layer {layer} is skipped with a bypass {kinds}, and only means fit into a model without the layer, where a "
                "layer without gates comes before it: use the model with its layer_mask as it is, which does not compute "
                "the layer either"
            )
        name = names[id(bias)]
        changed[name] = changed.get(name, bias.detach()) + sum(bypass.bias.detach() for bypass in means)
    return changed


def _last_bias(parts, pair):
    """The bias of what a layer adds last under its pair of a mask, None where there is none or more comes after it."""
    last = parts.mlp_linears[-1:] if pair[1] else (parts.out,)
    plain = last and type(parts.residuals[int(pair[1])]) is nn.Dropout
    return last[0].bias if plain else None


@torch.no_grad()
def hold_open(model):
    """Take a model's gates away, but for what its `layer_mask` needs: bypasses stay, on fresh, open gates of blocks."""
    held = {}
    for layer, (gates, pair) in enumerate(zip(model.gates, model.config.layer_mask, strict=True)):
        if bypass_of(gates) and not all(pair):
            bypass, granularity = gates["sublayers"].bypass, "block" if gates["sublayers"].whole else "sublayer"
            options = {"granularity": granularity, "bypass": bypass[0].kind, "rank": bypass[0].rank}
            gate = build_gate("block", model.config, options)
            model._init_weights(gate.score)
            gate.bypass = bypass
            held[layer] = {"gate": "block", "layers": [layer], **options}, gate.to(model.device, model.dtype)
        gates.clear()
    for layer, (_, gate) in held.items():
        model.gates[layer]["sublayers"] = gate
    model.config.gates = [entry for entry, _ in held.values()] or None


def _renumbered(state, place):
    """The weights of the layers in `place` (old index -> new) under their new names, and all others."""
    moved = {}
    for name, tensor in state.items():
        parts = name.split(".")
        at = 1 if parts[0] == "gates" else 2 if parts[:2] == ["vit", "layers"] else None
        if at is not None:
            if int(parts[at]) not in place:
                continue
            parts[at] = str(place[int(parts[at])])
        moved[".".join(parts)] = tensor
    return moved


@torch.no_grad()
def start_from_mask(model, mask):
    """Set the biases of a model's block gates so that, thresholded, they decide as the mask does.

    Args:
        model: a model with fresh block gates.
        mask: L pairs of bools (attention, MLP), as `DynViTConfig.layer_mask`.

    Raises:
        ValueError: a mask for another number of layers, or one that differs where no gate can follow it.
    """
    if len(mask) != len(model.gates):
        raise ValueError(f"the mask to start from has {len(mask)} layers, the model {len(model.gates)}")
    for layer, (gates, pair) in enumerate(zip(model.gates, mask, strict=True)):
        gate = gates["sublayers"] if "sublayers" in gates else None
        if not isinstance(gate, BlockGate):
            if not all(pair):
                raise ValueError(f"the mask to start from skips in layer {layer}, where no block gate decides")
            continue
        if gate.whole and pair[0] != pair[1]:
            raise ValueError(
                f"the mask to start from parts attention and MLP in layer {layer}, whose gate decides them alike: "
                'give it granularity "sublayer", or search with granularity block'
            )
        keeps = torch.tensor(pair[: gate.score.out_features], device=gate.score.bias.device)
        gate.score.bias.copy_(torch.where(keeps, INSIDE, OUTSIDE) + cut(gate.threshold))
