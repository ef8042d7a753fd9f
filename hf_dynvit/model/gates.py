"""The shelf of gates: names as they stand in config.json, and the gates built for each layer of a model."""

import inspect

from torch import nn

from .gate_block import BlockGate
from .gate_head import HeadGate
from .gate_patch import PatchGate
from .gate_random import RandomGate
from .gate_sublayer import SublayerGate


GATES = {
    "patch": PatchGate,
    "head": HeadGate,
    "sublayer": SublayerGate,
    "block": BlockGate,
    "random": RandomGate,
}


def build_gates(config):
    """The gates of each layer: one `ModuleDict` per layer, first slot of `LayerDecisions` it fills -> gate.

    Raises:
        ValueError: an unknown gate or option, or two gates for the same decision on one layer.
    """
    layers = nn.ModuleList(nn.ModuleDict() for _ in range(config.num_hidden_layers))
    for entry in config.gates or []:
        options = {key: value for key, value in entry.items() if key not in ("gate", "layers")}
        for layer in entry.get("layers", range(config.num_hidden_layers)):
            gate = build_gate(entry["gate"], config, options)
            taken = {slot for other in layers[layer].values() for slot in other.slots}
            if taken & set(gate.slots):
                raise ValueError(
                    f"layer {layer} has two gates for {sorted(taken & set(gate.slots))}; the second is {entry!r}"
                )
            layers[layer][gate.slots[0]] = gate
    return layers


def build_gate(name, config, options):
    """One gate by its name on the shelf."""
    if name not in GATES:
        raise ValueError(f"unknown gate {name!r}; there are {sorted(GATES)}")
    try:
        return GATES[name](config, **options)
    except TypeError as error:
        raise ValueError(f"gate {name!r} does not take {sorted(options)}: {error}; {_options(name)}") from error


def _options(name):
    known = [p.name for cls in GATES[name].__mro__ for p in _parameters(cls)]
    return f"its options are {sorted(set(known))}"


def _parameters(cls):
    if "__init__" not in vars(cls) or cls in (nn.Module, object):
        return []
    names = inspect.signature(cls.__init__).parameters.values()
    return [p for p in names if p.default is not inspect.Parameter.empty]
