"""The cost of a forward: multiply-accumulates (MACs) in closed form, from what the packed layout really runs.

Counted: the patch projection, all matrix products of the layers, the gates, the search for where dropped tokens merge,
the classifier. Not counted, here as in the dense model: norms, activations, softmax, additions. A head that is off
saves its attention; the projections and the MLP's input keep their full width.

Letters: B images, N tokens, H heads, L layers. `config` is a native configuration or one with gates; its host says the
sizes.
"""

import torch

from .host import host_of


def attention_macs(config, tokens, heads):
    """MACs of one layer's attention for one image, projections included; numbers or tensors that broadcast.

    Args:
        tokens: that take part, 0 where the image skips it. heads: that are on.
    """
    sizes = host_of(config).sizes(config)
    return tokens * sizes.attention_weights + 2 * tokens * tokens * sizes.attention * (heads / sizes.heads)


def mlp_macs(config, tokens):
    """MACs of one layer's MLP for one image; tokens: that it transforms, 0 where the image skips it."""
    return tokens * host_of(config).sizes(config).mlp_weights


def layer_macs(config, attention_tokens, mlp_tokens, heads):
    """MACs of one layer for one image; the arguments are those of `attention_macs` and `mlp_macs`."""
    return attention_macs(config, attention_tokens, heads) + mlp_macs(config, mlp_tokens)


def merging_macs(config, into, kept_tokens):
    """MACs of finding where tokens merge, per image: into (B, N), kept_tokens (B,) with protected ones -> (B,)."""
    host = host_of(config)
    leaving = (into != torch.arange(into.shape[1], device=into.device)).sum(1)
    return leaving * (kept_tokens - len(host.protected)) * host.sizes(config).width


def stem_macs(config, num_tokens, classes):
    """MACs outside the layers for one image: patch projection and classifier."""
    host = host_of(config)
    sizes = host.sizes(config)
    return (num_tokens - len(host.protected)) * sizes.patch_weights + sizes.features * classes


def dense_macs(config, num_tokens, classes):
    """MACs of the dense model for one image of `num_tokens` tokens, protected ones included."""
    layer = layer_macs(config, num_tokens, num_tokens, host_of(config).sizes(config).heads)
    return stem_macs(config, num_tokens, classes) + config.num_hidden_layers * layer


def layer_costs(config, decisions, batch, num_tokens, device):
    """MACs of each layer for each image, gates and merging apart: (L, B); differentiable where the decisions are.

    Args:
        decisions: L `LayerDecisions`.
        batch, num_tokens: B and N.
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
    heads = usage("heads", host_of(config).sizes(config).heads)
    # Switches multiply MACs, not tokens, which attention squares: the gradient of a switch is what it saves.
    layers = attention * attention_macs(config, usage("attention_tokens", num_tokens), heads)
    layers = layers + mlp * mlp_macs(config, usage("mlp_tokens", num_tokens))
    layers = layers if torch.is_tensor(layers) else torch.tensor(float(layers), device=device)
    return layers.expand(len(decisions), batch)


def layer_shares(config, decisions, batch, num_tokens, device):
    """What each layer spends of its own dense MACs, for each image: (L, B); the arguments are those of `layer_costs`."""
    dense = layer_macs(config, num_tokens, num_tokens, host_of(config).sizes(config).heads)
    return layer_costs(config, decisions, batch, num_tokens, device) / dense


def cost(config, decisions, batch, num_tokens, classes, gate_macs, device, full_tokens=None):
    """Cost of each image relative to the dense model; differentiable where the decisions are.

    Args:
        decisions, batch, num_tokens, device: as in `layer_costs`.
        classes: outputs of the classifier, 0 without one.
        gate_macs: MACs of all gates that were evaluated, per image.
        full_tokens: tokens of the dense model where patches were taken away before the first layer, which leaves
            `num_tokens`; None: none were.

    Returns:
        (B,) float32: MACs spent / MACs of the dense model.
    """
    layers = layer_costs(config, decisions, batch, num_tokens, device).sum(0)
    merging = [
        merging_macs(config, decision.into, decision.attention_tokens.detach().sum(1, dtype=torch.float32))
        for decision in decisions
        if decision.into is not None
    ]
    full_tokens = num_tokens if full_tokens is None else full_tokens
    total = dense_macs(config, full_tokens, classes)
    return (layers + stem_macs(config, full_tokens, classes) + sum(merging, gate_macs)) / total
