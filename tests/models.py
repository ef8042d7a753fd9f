"""Gated tiny models for the tests: sets of gates, gates that decide at random but for good, and extreme decisions."""

import torch

from hf_dynvit import DynViTForImageClassification, LayerDecisions
from hf_dynvit.measure import LatencyTable
from hf_dynvit.model.bypass import Bypass
from hf_dynvit.model.gate import Score


GATE_SETS = {
    "patch on block": [{"gate": "patch"}],
    "patch on attention": [{"gate": "patch", "on": "attention"}],
    "patch on mlp": [{"gate": "patch", "on": "mlp"}],
    "patch for good": [{"gate": "patch", "drop": True}],
    "patch for good, then on mlp": [
        {"gate": "patch", "drop": True, "layers": [0]},
        {"gate": "patch", "on": "mlp", "layers": [1]},
    ],
    "patch merged": [{"gate": "patch", "drop": True, "merge": True}],
    "patch by novelty": [{"gate": "patch", "drop": True, "merge": True, "novelty": 8.0}],
    "merge": [{"gate": "merge"}],
    "merge by distance": [{"gate": "merge", "distance": 4.0}],
    "merge, as many": [{"gate": "merge", "distance": 4.0, "merged": 3}],
    "tome": [{"gate": "tome", "merged": 3}],
    "merge, then patch": [{"gate": "merge", "layers": [0]}, {"gate": "patch", "layers": [1]}],
    "pitome": [{"gate": "pitome", "merged": 3}],
    "halting": [{"gate": "halting"}],
    "token by attention, fused": [{"gate": "token", "keep": 0.6, "rest": "fuse", "layers": [1]}],
    "token by values, passing": [
        {"gate": "token", "score": "cls_attention_value", "samples": 8, "rest": "pass", "layers": [1]}
    ],
    "token by contrast": [{"gate": "token", "score": "contrast", "threshold": 0.5, "rest": "merge"}],
    "token by rank": [{"gate": "token", "score": "novelty", "threshold": 0.5, "by_rank": True}],
    "token by line, fused": [{"gate": "token", "score": "linear", "threshold": 0.5, "rest": "fuse"}],
    "token by predictor": [{"gate": "token", "score": "predictor", "keep": 0.6}],
    "token at random": [{"gate": "token", "score": "random", "top": 7}],
    "head": [{"gate": "head"}],
    "head official": [{"gate": "head", "deactivation": "official"}],
    "sublayer": [{"gate": "sublayer"}],
    "block": [{"gate": "block"}],
    "block by sub-layer": [{"gate": "block", "granularity": "sublayer", "pool": "mean"}],
    "block upfront": [{"gate": "block", "upfront": True, "pool": "mean"}],
    "block, head and patch": [{"gate": "block"}, {"gate": "head"}, {"gate": "patch", "drop": True, "merge": True}],
    "random block": [{"gate": "random", "unit": "block"}],
    "random patch": [{"gate": "random"}],
    "random patch merged": [{"gate": "random", "drop": True, "merge": True, "rate": 0.8}],
    "random head": [{"gate": "random", "unit": "head"}],
    "random sublayer": [{"gate": "random", "unit": "sublayer"}],
    "all": [
        {"gate": "patch", "on": "attention"},
        {"gate": "patch", "on": "mlp"},
        {"gate": "head"},
        {"gate": "sublayer"},
    ],
    "all official": [{"gate": "patch"}, {"gate": "head", "deactivation": "official"}, {"gate": "sublayer"}],
}


RULE_SETS = {"merge, as many", "tome", "pitome", "token by attention, fused", "token by values, passing"}
LEARNED_SETS = [name for name in GATE_SETS if "random" not in name and name not in RULE_SETS]


def gated(vit, gates, **options):
    """A model whose gates have random weights, so that they decide differently for each image and layer."""
    model = DynViTForImageClassification.from_vit(vit, gates=gates, **options)
    for module in model.modules():
        if isinstance(module, Score):
            torch.nn.init.normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias)
            if module.bias is not None and module.in_features == 1:  # one number that all tokens have about alike
                torch.nn.init.constant_(module.weight, 16.0)
                torch.nn.init.constant_(module.bias, -12.0)
    for module in model.modules():
        if isinstance(module, Bypass):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def images(batch, size=32, channels=3, **options):
    return torch.randn(batch, channels, size, size, **options)


def run(model, layout, pixel_values, **options):
    """A forward without gradients in one layout."""
    torch.manual_seed(1)  # for gates that are random in evaluation as well
    model.layout = layout
    with torch.no_grad():
        return model(pixel_values, **options)


def latency_table(model, **fields):
    """A made-up `LatencyTable` of a model: 0.3 ms of a layer per token, half a millisecond for open gates, 1 for closed."""
    gated = [layer for layer, gates in enumerate(model.gates) if gates]
    facts = {"device": "a CPU", "threads": 1, "dtype": "float32", "prepacked": False, "batch_size": 1, "rest": 2.0}
    times = {"tokens": [1, 17], "attention": [0.1, 1.7], "mlp": [0.2, 3.4]}
    groups = [{"layers": gated, "open": [0.5, 0.5], "closed": [1.0, 1.0]}] if gated else []
    return LatencyTable(**facts | times | {"gates": groups} | fields)


def random_decisions(batch, layers, tokens=17, heads=4, keep=0.5):
    """L `LayerDecisions` that keep each unit with probability `keep`, [CLS] always."""

    def draw(*shape):
        return torch.rand(batch, *shape) < keep

    def draw_tokens():
        kept = draw(tokens)
        kept[:, 0] = True
        return kept

    return [LayerDecisions(draw_tokens(), draw_tokens(), draw(heads), draw(2)) for _ in range(layers)]


def extreme_decisions(name, batch, layers, tokens=17, heads=4):
    """L equal `LayerDecisions` at a limit."""
    cls_only = torch.arange(tokens).eq(0).repeat(batch, 1)
    every_second = torch.arange(batch).remainder(2).eq(0)
    everything = LayerDecisions(
        *(torch.ones(batch, n, dtype=torch.bool) for n in (tokens, tokens, heads)), torch.ones(batch, 2).bool()
    )
    change = {
        "everything on": {},
        "only [CLS]": {"attention_tokens": cls_only, "mlp_tokens": cls_only},
        "all heads off": {"heads": ~everything.heads},
        "only [CLS], all heads off": {"attention_tokens": cls_only, "heads": ~everything.heads},
        "all sub-layers off": {"sublayers": ~everything.sublayers},
        "attention off": {"sublayers": torch.tensor([False, True]).repeat(batch, 1)},
        "mlp off": {"sublayers": torch.tensor([True, False]).repeat(batch, 1)},
        "off for every second image": {"sublayers": every_second[:, None].repeat(1, 2)},
        "attention and mlp off in turn": {"sublayers": torch.stack([every_second, ~every_second], 1)},
        "heads off for every second image": {"heads": every_second[:, None].repeat(1, heads)},
    }
    return [everything._replace(**change[name])] * layers


EXTREMES = (
    "everything on",
    "only [CLS]",
    "all heads off",
    "only [CLS], all heads off",
    "all sub-layers off",
    "attention off",
    "mlp off",
    "off for every second image",
    "attention and mlp off in turn",
    "heads off for every second image",
)
