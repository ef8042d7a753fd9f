"""Which learned gates of a model decide tokens, and which heads and sub-layers: what is taught differently."""

from ..model.gate import LearnedGate


UNITS = ("heads", "sublayers")  # slots of gates that decide parts of a layer


def token_gates(model):
    """Layer -> learned gate that decides tokens by a linear map of what enters the layer's attention."""
    found = {
        index: gates["attention_tokens"] for index, gates in enumerate(model.gates) if "attention_tokens" in gates
    }
    width = model.host.sizes(model.config).width
    return {
        index: gate
        for index, gate in found.items()
        if isinstance(gate, LearnedGate) and gate.score.in_features == width
    }


def unit_gates(model):
    """(layer, slot) -> learned gate of heads or of sub-layers."""
    return {
        (layer, slot): gate
        for layer, found in enumerate(model.gates)
        for slot, gate in found.items()
        if slot in UNITS and isinstance(gate, LearnedGate)
    }
