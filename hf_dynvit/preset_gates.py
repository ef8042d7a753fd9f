"""The gates of each preset, by name."""


def _adavit(layers):
    return [
        {"gate": "patch", "on": "attention", "layers": layers[1:]},
        {"gate": "patch", "on": "mlp", "layers": layers},
        {"gate": "sublayer", "layers": layers[1:]},
    ]


def _adavit_official(layers):
    """Placement, temperature and thresholds of the published code; heads deactivate fully."""
    shared = {"tau": 5.0}
    return [
        {"gate": "patch", "on": "block", "layers": layers, "threshold": 0.6, **shared},
        {"gate": "head", "deactivation": "official", "layers": layers[1:], **shared},
        {"gate": "sublayer", "layers": layers[1:], **shared},
    ]


PRESET_GATES = {"adavit": _adavit, "adavit-official": _adavit_official}


def preset_gates(name, num_layers):
    """The gate dicts of preset `name` for a model of `num_layers` layers."""
    if name not in PRESET_GATES:
        raise ValueError(f"unknown preset {name!r}; there are {sorted(PRESET_GATES)}")
    return PRESET_GATES[name](list(range(num_layers)))
