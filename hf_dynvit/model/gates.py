"""The shelf of gates: names as they stand in config.json, and the gates of each layer of a model."""

import inspect

from torch import nn

from .decisions import KEEPS
from .gate import Gate
from .gate_block import BlockGate, SublayerGate
from .gate_halting import HaltingGate
from .gate_head import HeadGate
from .gate_merge import MergeGate
from .gate_patch import PatchGate
from .gate_pitome import PitomeGate
from .gate_random import RandomGate
from .gate_token import TokenGate
from .gate_tome import TomeGate
from .host import host_of


GATES = {
    "patch": PatchGate,
    "merge": MergeGate,
    "tome": TomeGate,
    "pitome": PitomeGate,
    "token": TokenGate,
    "halting": HaltingGate,
    "head": HeadGate,
    "sublayer": SublayerGate,
    "block": BlockGate,
    "random": RandomGate,
}


def register_gate(name, kind):
    """Put a gate of your own on the shelf, before models that have it are built or loaded.

    Args:
        name: what `gates` of a configuration calls it.
        kind: a `Gate` (most often a `LearnedGate`), called with `(config, **options)`. Its code does not travel with a
            model: who loads the model registers the gate first.

    Raises:
        ValueError: what is not a class of gates or is one for another version, or a name that another one has.
    """
    if not (isinstance(kind, type) and issubclass(kind, Gate)):
        raise ValueError(f"gate {name!r} must be a subclass of Gate, got {kind!r}")
    asked = [getattr(kind, method) for method in ("forward", "act", "logits", "decidable") if hasattr(kind, method)]
    former = [method.__name__ for method in asked if "alive" in inspect.signature(method).parameters]
    if former:
        raise ValueError(
            f"{former} of gate {name!r} must take `state` (a TokenState, with `alive` and `size` of the tokens) in place "
            "of `alive`"
        )
    if GATES.get(name, kind) is not kind:
        raise ValueError(f"there is a gate {name!r} already: {GATES[name].__name__}")
    GATES[name] = kind


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
            _check_reading(gate, layer, entry, config)
            taken = {slot for other in layers[layer].values() for slot in other.slots}
            if taken & set(gate.slots):
                raise ValueError(
                    f"layer {layer} has two gates for {sorted(taken & set(gate.slots))}; the second is {entry!r}"
                )
            layers[layer][gate.slots[0]] = gate
    return layers


def _check_reading(gate, layer, entry, config):
    """Refuse a gate that reads attention where there is none to read."""
    if gate.reads_attention and layer == 0:
        raise ValueError(f"{entry!r} reads the attention of the layer before: its layers must be 1 or more, got 0")
    if gate.reads_attention and not host_of(config).protects_first():
        raise ValueError(
            f"{entry!r} reads the attention of [CLS], which must come first, not at {host_of(config).protected}"
        )


def check_names(gates):
    """Raise ValueError for a gate that is not on the shelf, of a list of gates as in `DynViTConfig`."""
    unknown = [entry["gate"] for entry in gates or [] if entry["gate"] not in GATES]
    if unknown:
        raise ValueError(
            f"unknown gate {unknown[0]!r}; there are {sorted(GATES)}. A gate from elsewhere must be registered first "
            "(hf_dynvit.model.register_gate)"
        )


def build_gate(name, config, options):
    """One gate by its name on the shelf."""
    check_names([{"gate": name}])
    try:
        gate = GATES[name](config, **options)
    except TypeError as error:
        raise ValueError(f"gate {name!r} does not take {sorted(options)}: {error}; {_options(name)}") from error
    if not gate.slots or not set(gate.slots) <= set(KEEPS):
        raise ValueError(f"slots of gate {name!r} must be some of {KEEPS}, got {gate.slots}")
    gate.protected = host_of(config).index()
    return gate


def _options(name):
    known = [p.name for cls in GATES[name].__mro__ for p in _parameters(cls)]
    return f"its options are {sorted(set(known))}"


def _parameters(cls):
    if "__init__" not in vars(cls) or cls in (nn.Module, object):
        return []
    names = inspect.signature(cls.__init__).parameters.values()
    return [p for p in names if p.default is not inspect.Parameter.empty]
