"""Presets of gates: what each name stands for, ours and those of the literature."""

from .host import sizes_of


def _adavit(layers, config):
    """Tokens are pruned permanently, at four depths: what short training can adapt a body to.

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


def _adavit_plus(layers, config):
    """All three kinds of AdaViT's decisions, made to be learned in closed form (training/closed_form.py).

    Merging a little in every layer; heads; and attention and MLP apart, in whose place a map of low rank stands.
    """
    return [
        *_merge(layers, config),
        {"gate": "head", "layers": layers[1:], "init_bias": 16.0},
        {"gate": "sublayer", "layers": layers[1:], "bypass": "low_rank", "rank": 16, "init_bias": 16.0},
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


def _merge(layers, config):
    """A little merging in every layer but the first two: what a trained ViT takes without any training."""
    return [{"gate": "merge", "distance": 4.0, "layers": layers[2:] or layers[1:]}]


def quarters(layers):
    """Three depths, of 12 layers the fourth, seventh and tenth, as EViT and DynamicViT have them; never the first layer."""
    return sorted({len(layers) * quarter // 4 for quarter in (1, 2, 3)} - {0})


def _evit(layers, config):
    """EViT (Liang et al., 2022): what [CLS] attends to stays, seven tenths three times, and the rest becomes one token."""
    return [{"gate": "token", "score": "cls_attention", "keep": 0.7, "rest": "fuse", "layers": quarters(layers)}]


def _topk(layers, config):
    """The same without the token of the rest (Haurum et al., 2023): a baseline that few methods beat."""
    return [{"gate": "token", "score": "cls_attention", "keep": 0.7, "layers": quarters(layers)}]


def _ats(layers, config):
    """ATS (Fayyaz et al., 2022): as many samples as there are patches, in all layers after the first quarter."""
    sizes, start = sizes_of(config), max(1, len(layers) // 4)
    samples = sizes.tokens - sizes.protected
    return [{"gate": "token", "score": "cls_attention_value", "samples": samples, "layers": layers[start:]}]


def _dynamicvit(layers, config):
    """DynamicViT (Rao et al., 2021): a predictor at three depths, trained by sampling; then the best seven tenths stay."""
    return [{"gate": "token", "score": "predictor", "keep": 0.7, "layers": quarters(layers)}]


def _random_tokens(layers, config):
    """The baseline of the three: as many tokens at the same depths, drawn at random."""
    return [{"gate": "token", "score": "random", "keep": 0.7, "layers": quarters(layers)}]


def _tome(layers, config):
    """ToMe (Bolya et al., 2023): eight merges in each layer."""
    return [{"gate": "tome", "merged": 8, "layers": layers}]


def _cropr(layers, config):
    """Token Cropr (Bergner et al., 2025): eight patches leave before each layer but the first, by a score taught by a head."""
    sizes = sizes_of(config)
    patches = sizes.tokens - sizes.protected
    return [
        {"gate": "token", "score": "linear", "top": max(1, patches - 8 * layer), "layers": [layer]}
        for layer in layers[1:]
    ]


def _pitome(layers, config):
    """PiToMe (Tran et al., 2024): as many, of the tokens that are like many others, the margin falling from 0.9 with depth."""
    margins = [round(0.9 - 0.9 * layer / len(layers), 4) for layer in layers]
    return [
        {"gate": "pitome", "merged": 8, "margin": margin, "layers": [layer]} for layer, margin in enumerate(margins)
    ]


def _avit(layers, config):
    """A-ViT (Yin et al., 2022): tokens halt one by one, in any layer but the first."""
    return [{"gate": "halting", "layers": layers[1:]}]


def _diffrate(layers, config):
    """After DiffRate (Chen et al., 2023): a rate for each layer but the first, learned; what leaves merges."""
    gate = {"gate": "token", "score": "cls_attention", "threshold": 0.5, "by_rank": True, "rest": "merge"}
    return [{**gate, "layers": layers[1:]}]


PRESET_GATES = {
    "adavit": _adavit,
    "merge": _merge,
    "adavit-plus": _adavit_plus,
    "adavit-official": _adavit_official,
    "layerskip": _layerskip,
    "layerskip-dynavit": _layerskip_dynavit,
    "evit": _evit,
    "topk": _topk,
    "ats": _ats,
    "dynamicvit": _dynamicvit,
    "cropr": _cropr,
    "tome": _tome,
    "random-tokens": _random_tokens,
    "pitome": _pitome,
    "avit": _avit,
    "diffrate": _diffrate,
}


def preset_gates(name, config):
    """The gate dicts of preset `name` for a model of that `ViTConfig`."""
    if name not in PRESET_GATES:
        raise ValueError(f"unknown preset {name!r}; there are {sorted(PRESET_GATES)}")
    return PRESET_GATES[name](list(range(config.num_hidden_layers)), config)
