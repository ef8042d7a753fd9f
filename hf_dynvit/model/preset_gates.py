"""The gates of each preset, by name."""


def _adavit(layers, config):
    """Tokens are dropped for good, at four depths: what short training can adapt a body to.

    Tokens that come back after layers that did not see them are a kind that a trained ViT has never met: it takes long
    training to make use of them. Novelty orders the tokens before anything is learned. Sub-layer gates start wide open,
    beyond any common shift that brings the patch gates to a budget: the first thing they do must not be chance.
    """
    depth = len(layers)
    places = sorted({depth * twelfths // 12 for twelfths in (3, 5, 7, 9)} - {0})
    return [
        {"gate": "patch", "on": "block", "drop": True, "merge": True, "novelty": 16.0, "layers": places},
        {"gate": "sublayer", "layers": layers[1:], "init_bias": 16.0},
    ]


def _adavit_official(layers, config):
    """Placement, temperature and thresholds of the published code; heads deactivate fully.

    Its gates start at a logit of 0, where few tokens are drawn, and half of the heads and sub-layers. Here they start
    just above their thresholds (logit 0.405 and 0): open in evaluation, and drawn nearly as rarely.
    """
    shared = {"tau": 5.0}
    return [
        {"gate": "patch", "on": "block", "layers": layers, "threshold": 0.6, "init_bias": 0.41, **shared},
        {"gate": "head", "deactivation": "official", "layers": layers[1:], "init_bias": 0.01, **shared},
        {"gate": "sublayer", "layers": layers[1:], "init_bias": 0.01, **shared},
    ]


def _layerskip(layers, config):
    """A policy per layer but the first, which no trained ViT can do without; nearly open at first."""
    return [{"gate": "block", "layers": layers[1:], "init_bias": 2.5, "value_width": 64}]


def _layerskip_dynavit(layers, config):
    """Placement and sizes of the public code: every layer may be skipped, half of the draws skip at first."""
    return [{"gate": "block", "layers": layers, "init_bias": 0.01, "value_width": config.hidden_size}]


PRESET_GATES = {
    "adavit": _adavit,
    "adavit-official": _adavit_official,
    "layerskip": _layerskip,
    "layerskip-dynavit": _layerskip_dynavit,
}


def preset_gates(name, config):
    """The gate dicts of preset `name` for a model of that `ViTConfig`."""
    if name not in PRESET_GATES:
        raise ValueError(f"unknown preset {name!r}; there are {sorted(PRESET_GATES)}")
    return PRESET_GATES[name](list(range(config.num_hidden_layers)), config)
