"""The cost of a forward: multiply-accumulates (MACs) in closed form, from what the packed layout really runs.

Counted: the patch projection, all matrix products of the layers and of their bypasses, the gates, the search for where dropped tokens merge,
the classifier. Not counted, here as in the dense model: norms, activations, softmax, additions. A head that is off
saves its attention; the projections and the MLP's input keep their full width.

Letters: B images, N tokens, H heads, L layers. `config` is a native configuration or one with gates; its host says the
sizes.
"""

import torch

from .bypass import bypass_of
from .host import sizes_of


def layer_macs(config, attention_tokens, mlp_tokens, heads):
    """MACs of one layer for one image; numbers or tensors that broadcast.

    Args:
        attention_tokens, mlp_tokens: tokens that attention and MLP compute, 0 where the image skips it.
        heads: heads that are on.
    """
    sizes = sizes_of(config)
    return _attention_macs(sizes, attention_tokens, heads) + mlp_tokens * sizes.mlp_weights


def _attention_macs(sizes, tokens, heads):
    return tokens * sizes.attention_weights + 2 * tokens * tokens * sizes.attention * (heads / sizes.heads)


def _last_macs(sizes, tokens, heads):
    """MACs of the last layer's attention and of its MLP, if the protected tokens alone are computed, which attend to `tokens`."""
    first, shared = sizes.protected, sizes.key_value_weights
    weights = tokens * shared + first * (sizes.attention_weights - shared)
    return weights + 2 * first * tokens * sizes.attention * (heads / sizes.heads), first * sizes.mlp_weights


def stem_macs(config, num_tokens, classes):
    """MACs outside the layers for one image: patch projection and classifier."""
    sizes = sizes_of(config)
    return (num_tokens - sizes.protected) * sizes.patch_weights + sizes.features * classes


def dense_macs(config, num_tokens, classes, last_layer=None):
    """MACs of the dense model for one image of `num_tokens` tokens, protected ones included; `last_layer`: as in `DynViTConfig`."""
    sizes = sizes_of(config)
    layer = layer_macs(config, num_tokens, num_tokens, sizes.heads)
    last = layer if last_layer != "read" else sum(_last_macs(sizes, num_tokens, sizes.heads))
    return stem_macs(config, num_tokens, classes) + (config.num_hidden_layers - 1) * layer + last


def layer_costs(config, decisions, batch, num_tokens, device, gates=None, features=False):
    """MACs of each layer for each image, gates and merging apart: (L, B); differentiable where L `decisions` are.

    `gates`, those of each layer, are read for what they run instead of what is skipped; None: nothing. `features`: all tokens of
    the last of them are wanted, whatever `config.last_layer` says.
    """

    def usage(slot, full):
        """Units of a slot that each layer keeps: (L, B), or (L, B, 2) for sub-layers, or `full` if no layer decides."""
        keeps = [getattr(decision, slot) for decision in decisions]
        decided = [layer for layer, keep in enumerate(keeps) if keep is not None]
        if not decided:
            return full
        stacked = torch.stack([keeps[layer] for layer in decided])
        kept = stacked.float() if slot == "sublayers" else stacked.sum(-1, dtype=torch.float32)
        if len(decided) == len(decisions):
            return kept
        return kept.new_full((len(decisions), *kept.shape[1:]), full).index_copy(
            0, torch.tensor(decided, device=device), kept
        )

    sublayers = usage("sublayers", 1)
    attention, mlp = sublayers.unbind(-1) if torch.is_tensor(sublayers) else (1, 1)
    sizes = sizes_of(config)
    heads = usage("heads", sizes.heads)
    # Switches multiply MACs, not tokens, which attention squares: the gradient of a switch is what it saves.
    tokens = usage("attention_tokens", num_tokens)
    layers = attention * _attention_macs(sizes, tokens, heads)
    layers = layers + mlp * usage("mlp_tokens", num_tokens) * sizes.mlp_weights
    layers = layers if torch.is_tensor(layers) else torch.tensor(float(layers), device=device)
    layers = layers.expand(len(decisions), batch)
    reads = not features and getattr(config, "last_layer", None) == "read"
    if reads:
        attention, mlp, tokens, heads = (_of_last(value) for value in (attention, mlp, tokens, heads))
        parts = _last_macs(sizes, tokens, heads)
        last = attention * parts[0] + mlp * parts[1]
        layers = torch.cat((layers[:-1], (layers.new_zeros(batch) + last).unsqueeze(0)))
    bypasses = [bypass_of(own) for own in gates or ()]
    if not any(bypasses):
        return layers
    none, few = layers.new_zeros(batch), [None] * len(decisions)
    if reads:
        few[-1] = sizes.protected
    return layers + torch.stack(
        [_bypass_macs(*layer, num_tokens, none) for layer in zip(bypasses, decisions, few, strict=True)]
    )


def _of_last(usage):
    """What the last layer uses, (B,) or a number, of what all do: (L, B), or a number for each."""
    return usage[-1] if torch.is_tensor(usage) else usage


def _bypass_macs(bypasses, decision, few, num_tokens, none):
    """MACs of what runs instead of the sub-layers that a `LayerDecisions` skips: (B,), or `none`; on a `few` tokens, or None."""
    if not bypasses or decision.sublayers is None:
        return none
    off = 1 - decision.sublayers.float()
    off = off.amin(1, keepdim=True) if len(bypasses) == 1 else off
    total = 0
    for slot, skipped, bypass in zip(("attention_tokens", "mlp_tokens"), off.unbind(1), bypasses, strict=False):
        keep = getattr(decision, slot)
        tokens = num_tokens if keep is None else keep.sum(1, dtype=torch.float32)
        tokens = tokens if few is None else few
        total = total + skipped * tokens * bypass.macs()
    return total


def layer_shares(config, decisions, batch, num_tokens, device, gates=None):
    """What each layer spends of its own dense MACs, for each image: (L, B); the arguments are those of `layer_costs`."""
    dense = layer_macs(config, num_tokens, num_tokens, sizes_of(config).heads)
    return layer_costs(config, decisions, batch, num_tokens, device, gates) / dense


def cost(
    config,
    decisions,
    batch,
    num_tokens,
    classes,
    gate_macs,
    device,
    full_tokens=None,
    gates=None,
    embedded=None,
    features=False,
):
    """Cost of each image relative to the dense model; differentiable where the decisions are.

    Args:
        decisions, batch, num_tokens, device: as in `layer_costs`.
        classes: outputs of the classifier, 0 without one.
        gate_macs: MACs of all gates that were evaluated, and of merging, per image.
        full_tokens: tokens of the dense model where fewer, `num_tokens`, enter the first layer; None: as many do.
        gates, features: as in `layer_costs`.
        embedded: tokens that were embedded, before patches were taken away; None: all of the dense model's.

    Returns:
        (B,) float32: MACs spent / MACs of the dense model.
    """
    layers = layer_costs(config, decisions, batch, num_tokens, device, gates, features).sum(0)
    full_tokens = num_tokens if full_tokens is None else full_tokens
    stem, total = stem_macs(config, embedded or full_tokens, classes), dense_macs(config, full_tokens, classes)
    return (layers + stem + gate_macs) / total


def noting_macs(config, decision, num_tokens):
    """MACs of the attention of [CLS] that a layer under a `LayerDecisions` notes for later gates: (B,), or a number."""
    keep, sublayers = decision.attention_tokens, decision.sublayers
    tokens = num_tokens if keep is None else keep.detach().sum(1, dtype=torch.float32)
    return tokens * sizes_of(config).attention * (1 if sublayers is None else sublayers[:, 0].detach().float())


def merging_macs(config, decision):
    """MACs of finding where the tokens of a `LayerDecisions` merge, if no gate `pairs` them: (B,)."""
    sizes, into = sizes_of(config), decision.into
    kept = decision.attention_tokens.detach().sum(1, dtype=torch.float32) - sizes.protected
    return (into != torch.arange(into.shape[1], device=into.device)).sum(1) * kept * sizes.width
