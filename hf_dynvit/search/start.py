"""Where policies start: at a static mask, such as a search has found on the dense model, instead of wide open.

A policy that starts open has to find, by chance and while it damages the body, what a search of a few minutes finds
without training. Started at the mask, what is left to learn is where an image should depart from it.
"""

import torch

from ..model.gate_block import BlockGate


INSIDE, OUTSIDE = 3.0, -2.0  # logits: what the mask keeps is drawn in 95 % of the cases, what it skips in 12 %


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
