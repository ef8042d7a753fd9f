"""Uses of a static mask: a checkpoint without its unused layers, or the start of a policy."""

import torch
from transformers import ViTConfig, ViTForImageClassification

from ..model.gate_block import BlockGate
from ..model.modeling_dynvit import DynViTForImageClassification


SAVED_WITH = ("model_type", "architectures", "transformers_version", "auto_map", "_name_or_path")
NOT_OF_LAYERS = (*SAVED_WITH, "gates", "layer_mask", "budget")
INSIDE, OUTSIDE = 3.0, -2.0  # logits: what the mask keeps is drawn in 95 % of the cases, what it skips in 12 %


def burn_in(model):
    """A new model without the layers that `config.layer_mask` switches off entirely; it gives the same logits.

    Its cost is relative to the smaller dense model. Where neither gates nor half-used layers are left, the result is a
    plain `ViTForImageClassification`.

    Args:
        model: a `DynViTForImageClassification` with a `layer_mask`.

    Raises:
        ValueError: no mask to burn in.
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
    fields = {name: value for name, value in config.to_dict().items() if name not in NOT_OF_LAYERS}
    fields["num_hidden_layers"] = len(kept)
    if whole and not gates:
        small = ViTForImageClassification(ViTConfig(**fields))
    else:
        dynamic = {"gates": gates or None, "layer_mask": None if whole else mask, "budget": config.budget}
        small = DynViTForImageClassification(type(config)(**fields, **dynamic))
    small.load_state_dict(_renumbered(model.state_dict(), place), strict=True)
    small.set_attn_implementation(config._attn_implementation)
    return small.to(model.dtype).to(model.device).eval()


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
        gate.score.bias.copy_(torch.where(keeps, INSIDE, OUTSIDE))
