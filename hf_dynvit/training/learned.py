"""What results say of a model's gates: which there are, whose preset they are, and whether they have learned."""

from ..model.gate import Gate
from ..model.gates import GATES
from .presets import preset_of


def gate_facts(model):
    """Facts that rows and cards name a model by; JSON-ready.

    Args:
        model: a `DynViTForImageClassification`, unwrapped.

    Returns:
        dict with `gates` (of the configuration), `preset` (its name, or None) and `learned`: for each kind of learnable
        gate the largest distance of a score weight from its fresh value. At 0 the score reads nothing of the tokens:
        what such a gate decides comes from its bias and, for patches, from their novelty.
    """
    names, learned = {kind: name for name, kind in GATES.items()}, {}
    for gate in model.modules():
        if isinstance(gate, Gate):
            moved = (gate.score.weight.detach().float() - gate.score.init_weight).abs().max().item()
            name = names.get(type(gate), type(gate).__name__)
            learned[name] = max(learned.get(name, 0.0), moved)
    return {"gates": model.config.gates, "preset": preset_of(model.config), "learned": learned}
