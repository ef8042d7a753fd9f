"""Random decisions of a chosen mean cost, to time a model under before its gates have learned anything.

Letters: B images, N tokens ([CLS] first), H heads, L layers.
"""

import torch

from ..model.cost import cost
from ..model.decisions import LayerDecisions


GATE_KINDS = ("patch", "sublayer", "head", "block")
SPREAD = 0.15  # standard deviation over images of the rate at which they keep tokens
LEAST_TOKENS = 0.1  # the rate of the image that keeps fewest


def gate_entries(label, num_layers):
    """The gate dicts of `label`, kinds joined by "+" ("patch+sublayer"), on all layers but the first.

    Raises:
        ValueError: an unknown kind, or one named twice.
    """
    kinds = label.split("+")
    if not set(kinds) <= set(GATE_KINDS) or len(set(kinds)) < len(kinds):
        raise ValueError(f'gates must be distinct and of {GATE_KINDS}, joined by "+", got {label!r}')
    return [{"gate": kind, "layers": list(range(1, num_layers))} for kind in kinds]


def draw_decisions(model, batch, target, generator):
    """Decisions for all that the gates of `model` decide, of mean cost `target`, different for every image.

    One rate steers them: each image keeps tokens at that rate plus its own normal offset, heads and sub-layers are on
    with that probability, all independent over layers. The rate is found by bisection on the cost, for these draws.

    Args:
        batch: B. target: mean cost to meet, gates included; met as closely as B images can.
        generator: `torch.Generator` on the CPU.

    Returns:
        L `LayerDecisions` on the CPU.

    Raises:
        ValueError: a target that these gates cannot reach.
    """
    config = model.config
    num_layers, num_tokens = config.num_hidden_layers, model.tokens_run
    whole = [any(gate.whole for gate in gates.values()) for gates in model.gates]
    slots = [{slot for gate in gates.values() for slot in gate.slots} for gates in model.gates]
    gate_macs = sum(gate.macs(num_tokens) for gates in model.gates for gate in gates.values())

    def uniform(units):
        return torch.rand(num_layers, batch, units, generator=generator)

    tokens, heads, sublayers = uniform(num_tokens), uniform(config.num_attention_heads), uniform(2)
    offset = SPREAD * torch.randn(batch, 1, generator=generator)

    def alike(keep, layer):
        """Attention and MLP of a block that is decided as a whole."""
        return keep[:, :1].expand(-1, 2) if whole[layer] and keep.shape[1] == 2 else keep

    def at(rate):
        kept = tokens < (rate + offset).clamp(LEAST_TOKENS, 1)
        kept[..., 0] = True
        keeps = {"attention_tokens": kept, "mlp_tokens": kept, "heads": heads < rate, "sublayers": sublayers < rate}
        decisions = [
            LayerDecisions(**{slot: alike(keeps[slot][layer], layer) for slot in slots[layer]})
            for layer in range(num_layers)
        ]
        given = config, decisions, batch, num_tokens, model.num_labels, gate_macs, "cpu"
        return cost(*given, model.num_tokens, model.gates, num_tokens).mean().item(), decisions

    low, high = -1.0, 2.0  # everything shut, everything open, whatever the offsets
    best = least, _ = at(low)
    most = at(high)[0]
    if not least <= target <= most:
        kinds = "+".join(entry["gate"] for entry in config.gates)
        raise ValueError(
            f"a mean cost of {target} is out of reach of the gates {kinds!r} on this model: "
            f"all shut it is {least:.3f}, all open {most:.3f}"
        )
    for _ in range(30):
        middle = (low + high) / 2
        found = at(middle)
        best = min(best, found, key=lambda pair: abs(pair[0] - target))
        if abs(best[0] - target) < 1e-3:
            break
        low, high = (middle, high) if found[0] < target else (low, middle)
    return best[1]


def move(decisions, device):
    """The same decisions on `device`."""
    return [LayerDecisions(*(None if keep is None else keep.to(device) for keep in layer)) for layer in decisions]
