"""Pictures of what a model or an agent decides: the patches that each image keeps at each depth, or in training.

Letters: B images, C channels, N tokens ([CLS] first), L layers, P patches (N - 1).
"""

from pathlib import Path
from textwrap import shorten

import torch

from ..model.cascade import view
from ..model.configuration_dynvit import pair
from .plots import ATTENTION, INK, MLP, MUTED, PAGE, TRACK, keep_map_plot, new_figure


DROPPED = 0.12  # what remains visible of a patch that a layer does not touch
# File -> caption.
AGENT_PICTURES = {
    "keep_map.png": "How often training kept each patch",
    "agent_patches.png": "What the agent keeps of some of the images",
}


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
            heads, runs = decisions[layer].heads, decisions[layer].sublayers
            attention_runs, mlp_runs = (True, True) if runs is None else (runs[image] > 0.5).tolist()
            of_heads = "" if heads is None else f", {int(heads[image].float().sum())}/{heads.shape[1]} heads"
            chip(axis, 0.0, "attention", ATTENTION, f"{_percent(attention)}{of_heads}" if attention_runs else "off")
            chip(axis, 1.0, "MLP", MLP, _percent(mlp) if mlp_runs else "off")
    figure.savefig(path, dpi=160, facecolor=PAGE)
    return cost


def draw_extremes(entrant, found, path, count=4):
    """`show_decisions` of the cheapest and the dearest images of `ImageCosts`, by cost, titled with cost and class read."""
    order = found.cost.argsort(stable=True)
    shown = torch.cat((order[:count], order[count:][-count:])).tolist()
    pixel_values, _, scale = chosen_images(entrant.images, found.places[shown].tolist())
    names = entrant.model.config.id2label
    titles = [f"{found.cost[index]:.2f}: {names[found.read[index].item()]}" for index in shown]
    show_decisions(entrant.model, pixel_values, path, titles=titles, **scale)


def first_images(dataset, count=8):
    """`chosen_images` at the beginning."""
    return chosen_images(dataset, range(min(count, len(dataset))))


def chosen_images(dataset, places):
    """Items of an `ImageDataset` prepared as for evaluation: (pixel_values, labels, mean and std to show them)."""
    items = [dataset[index] for index in places]
    processor = dataset.transform.processor
    shown = (
        {"mean": processor.image_mean, "std": processor.image_std}
        if processor.do_normalize
        else {"mean": 0.0, "std": 1.0}
    )
    return torch.stack([item["pixel_values"] for item in items]), [item["labels"] for item in items], shown


def draw_agent(agent, dataset, folder):
    """Write `AGENT_PICTURES`: of the `PatchAgent` of a finished training, and of the first images of a data set."""
    (keep_map, agent_patches), grid = (Path(folder) / file for file in AGENT_PICTURES), agent.keep_map()
    keep_map_plot(grid, agent.name, keep_map)
    pixel_values, _, shown = first_images(dataset)
    patches = agent.evaluation_patches(pixel_values.to(agent.kept.device))
    image_plot(unnormalise(pixel_values, **shown), keep_masks(patches, len(pixel_values), grid.shape), agent_patches)


def keep_masks(patches, images, shape):
    """Indices (K,), (B, K) or None, as agents give them, as floats (B, rows, columns), 1 where a patch is kept."""
    if patches is None:
        return torch.ones(images, *shape)
    masks = torch.zeros(images, shape[0] * shape[1])
    return masks.scatter_(1, patches.cpu().expand(images, -1), 1.0).unflatten(1, shape)


def image_plot(images, masks, path):
    """images (B, height, width, 3) above what is kept of them, masks (B, rows, columns), to a PNG file."""
    figure = new_figure(1.2 * len(images) + 0.2, 2.6, layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        frame(axes[0][column], image.numpy(), "")
        frame(axes[1][column], fade(image, mask).numpy(), f"{int(mask.sum())} of {mask.numel()}")
    figure.savefig(path, dpi=150, facecolor=PAGE)


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
    resolution = view(config, 1, None if config.cascade is None else 0)[0]
    size = size if resolution is None else pair(resolution)
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
    """What each layer decides, of a cascade in its first look, and what an image costs."""
    was_training = model.training
    model.eval()
    try:
        out = model(pixel_values.to(model.device))
        first = out if out.decisions is not None else model(pixel_values.to(model.device), look=0)
    finally:
        model.train(was_training)
    return first.decisions, out.cost.cpu()


def _percent(used):
    return f"{100 * used.mean().item():.0f} %"


def image_grid(rows, columns, aspect):
    """A figure with `rows` x `columns` axes for images of that height / width, and the key above them; in inches."""
    side, gap, text, key, margin = 1.65, 0.14, 0.66, 0.68, 0.12
    total_width = columns * side + (columns - 1) * gap + 2 * margin
    total_height = rows * (side * aspect + text) + key
    figure = new_figure(total_width, total_height)
    axes = []
    for row in range(rows):
        bottom = total_height - key - row * (side * aspect + text) - side * aspect
        lefts = [margin + column * (side + gap) for column in range(columns)]
        boxes = [(left / total_width, bottom / total_height) for left in lefts]
        size = (side / total_width, side * aspect / total_height)
        axes.append([figure.add_axes((*box, *size)) for box in boxes])
    figure.text(
        margin / total_width,
        1 - 0.06 / total_height,
        "a dense ViT transforms all patches in all layers: cost 1\n"
        "patches here: in full = attention and MLP transform them, half = one of the two, faded = neither",
        va="top",
        fontsize=8,
        color=MUTED,
    )
    return figure, axes


def frame(axis, image, title):
    """image (height, width, 3) fills the axis; a title too long for its column is cut."""
    axis.imshow(image, interpolation="nearest", aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set(color=TRACK, linewidth=0.8)
    if title:
        axis.set_title(shorten(title, 26, placeholder=" …"), fontsize=9, color=INK, pad=4, loc="left")


def cost_bar(axis, cost):
    """The cost of an image below its picture, as a number and as a part of the dense model's."""
    _below(axis, 0, 1, f"cost {cost:.2f}", INK)
    points = axis.bbox.transformed(axis.figure.dpi_scale_trans.inverted())
    low, high = -0.15 / points.height, -0.09 / points.height  # inches below the picture -> fraction of it
    for share, color in ((1.0, TRACK), (min(cost, 1.0), INK)):
        axis.fill(
            [0.42, 0.42 + 0.58 * share, 0.42 + 0.58 * share, 0.42],
            [low, low, high, high],
            transform=axis.transAxes,
            color=color,
            linewidth=0,
            clip_on=False,
        )


def _below(axis, x, line, text, color):
    """Text below a picture, at its left (x = 0) or right (x = 1) edge, in line 1 or 2."""
    axis.annotate(
        text,
        (x, 0),
        (0, -3 - 12 * (line - 1)),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        ha="right" if x else "left",
        fontsize=8,
        color=color,
    )


def chip(axis, x, name, color, text):
    """A sub-layer and what it runs on; grey where it is off."""
    _below(axis, x, 1, name, MUTED if text == "off" else color)
    _below(axis, x, 2, text, MUTED if text == "off" else INK)
