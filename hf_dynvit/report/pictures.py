"""Pictures of what a model decides: the patches each image keeps at each depth, and the usage of all layers.

Letters: B images, C channels, N tokens ([CLS] first), L layers, P patches (N - 1).
"""

import torch

from ..measure.usage import UsageMeter
from ..model.configuration_dynvit import pair
from .drawing import INK, PAGE, TRACK, chip, cost_bar, frame, image_grid, new_figure


ATTENTION, MLP, HEADS = "#2a6fd6", "#e07b39", "#3b9b6d"
DROPPED = 0.12  # what remains visible of a patch that a layer does not touch


def show_decisions(model, pixel_values, path, titles=None, layers=None, mean=0.5, std=0.5):
    """One row per image: the image, its cost, and what survives at a few depths.

    A patch that both sub-layers of a block transform is shown in full, one that a single one transforms at half
    strength, one that passes by untouched is faded. The chips below say which sub-layers run, and on what share of
    the patches.

    Args:
        model: a `DynViTForImageClassification` or `DynViTModel`; decides as in evaluation, is left as it was.
        pixel_values: (B, C, height, width), normalised; C is 1 or 3.
        path: the PNG (or PDF, SVG) to write.
        titles: B strings, written above the images.
        layers: which to show, counted from 0; None takes four, evenly spaced.
        mean, std: of the image processor, a number or one per channel, to show the image as it was.

    Returns:
        The cost of each image, (B,).

    Raises:
        ValueError: layers that do not exist, titles or channels that do not match.
    """
    depth = model.config.num_hidden_layers
    layers = default_layers(depth) if layers is None else list(layers)
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        raise ValueError(f"layers to show must be in 0..{depth - 1}, got {layers}")
    if titles is not None and len(titles) != len(pixel_values):
        raise ValueError(f"there are {len(pixel_values)} images but {len(titles)} titles")
    images = unnormalise(pixel_values, mean, std)  # (B, height, width, 3)
    decisions, cost = _decide(model, pixel_values)

    height, width = pixel_values.shape[-2:]
    figure, axes = image_grid(len(images), len(layers) + 1, height / width)
    for image, row in enumerate(axes):
        frame(row[0], images[image].numpy(), titles[image] if titles else None)
        cost_bar(row[0], cost[image].item())
        for layer, axis in zip(layers, row[1:], strict=True):
            attention, mlp = used_patches(decisions[layer], image, model.config, (height, width))
            frame(axis, fade(images[image], (attention + mlp) / 2).numpy(), f"layer {layer}" if image == 0 else "")
            attention_runs, mlp_runs = _switches(decisions[layer], image)
            heads = _heads(decisions[layer], image)
            chip(axis, 0.0, "attention", ATTENTION, f"{_percent(attention)}{heads}" if attention_runs else "off")
            chip(axis, 1.0, "MLP", MLP, _percent(mlp) if mlp_runs else "off")
    figure.savefig(path, dpi=160, facecolor=PAGE)
    return cost


def plot_usage(usage, path):
    """Per layer the mean share of tokens, heads and sub-layers that is used.

    Args:
        usage: `UsageMeter.per_layer()`, that is kind -> {layer: share}, or the L `LayerDecisions` of a batch.
        path: the PNG (or PDF, SVG) to write.

    Raises:
        ValueError: nothing is decided anywhere.
    """
    if not isinstance(usage, dict):
        meter = UsageMeter()
        meter.update(usage)
        usage = meter.per_layer()
    panels = {
        "tokens": [("attention_tokens", "attention", ATTENTION), ("mlp_tokens", "MLP", MLP)],
        "sub-layers": [("attention", "attention", ATTENTION), ("mlp", "MLP", MLP)],
        "heads": [("heads", "heads", HEADS)],
    }
    panels = {name: [line for line in lines if line[0] in usage] for name, lines in panels.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"there is no usage to plot: no layer decides anything (kinds: {sorted(usage)})")
    figure = new_figure(3.6 * len(panels) + 0.5, 2.9, layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        _usage_panel(axis, name, [(usage[kind], label, color) for kind, label, color in lines])
    axes[0].set_ylabel("share used", color=INK)
    figure.savefig(path, dpi=160, facecolor=PAGE)


def default_layers(depth):
    """Up to four layers, counted from 0, evenly spaced, the last among them."""
    count = min(4, depth)
    return [round((index + 1) * depth / count) - 1 for index in range(count)]


def unnormalise(pixel_values, mean=0.5, std=0.5):
    """(B, C, height, width) normalised -> (B, height, width, 3) in [0, 1]."""
    channels = pixel_values.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"images with 1 or 3 channels can be shown, got {channels}")
    mean, std = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    images = (pixel_values.detach().float().cpu() * std + mean).clamp(0, 1)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def used_patches(decision, image, config, size):
    """What the two sub-layers of a layer transform of one image: two bool maps of patches, each (rows, columns)."""
    grid = tuple(side // patch for side, patch in zip(size, pair(config.patch_size), strict=True))
    maps = []
    for index, tokens in enumerate((decision.attention_tokens, decision.mlp_tokens)):
        used = torch.ones(grid) if tokens is None else tokens[image, 1:].float().cpu().reshape(grid)
        if decision.sublayers is not None:
            used = used * decision.sublayers[image, index].float().cpu()
        maps.append(used)
    return maps


def fade(image, strength):
    """image (height, width, 3) shown at the strength (rows, columns) of its patches, 0 nearly gone, 1 in full."""
    strength = torch.nn.functional.interpolate(strength[None, None], image.shape[:2])[0, 0].unsqueeze(-1)
    visible = DROPPED + (1 - DROPPED) * strength
    ground = torch.tensor([0.89, 0.885, 0.867])  # TRACK
    return image * visible + ground * (1 - visible)


@torch.no_grad()
def _decide(model, pixel_values):
    was_training = model.training
    model.eval()
    try:
        out = model(pixel_values.to(model.device))
    finally:
        model.train(was_training)
    return out.decisions, out.cost.cpu()


def _switches(decision, image):
    return (True, True) if decision.sublayers is None else (decision.sublayers[image] > 0.5).tolist()


def _percent(used):
    return f"{100 * used.mean().item():.0f} %"


def _heads(decision, image):
    if decision.heads is None:
        return ""
    return f", {int(decision.heads[image].float().sum())}/{decision.heads.shape[1]} heads"


def _usage_panel(axis, name, lines):
    for shares, label, color in lines:
        layers = sorted(shares, key=int)  # keys are strings after a trip through JSON
        axis.plot(
            [int(layer) for layer in layers],
            [shares[layer] for layer in layers],
            marker="o",
            markersize=4,
            linewidth=1.8,
            color=color,
            label=label,
            clip_on=False,
        )
    axis.set_title(name, loc="left", fontsize=10, color=INK)
    axis.set_xlabel("layer", color=INK)
    axis.set_ylim(0, 1)
    axis.margins(x=0.04)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.grid(axis="y", color=TRACK, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(TRACK)
    axis.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best")
