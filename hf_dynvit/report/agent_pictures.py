"""Pictures of patch agents: which patches training kept, what the agent keeps of an image, accuracy against time."""

from pathlib import Path

import torch

from .drawing import INK, MUTED, PAGE, TRACK, frame, new_figure
from .pictures import fade, unnormalise


# File -> caption.
AGENT_PICTURES = {
    "keep_map.png": "How often training kept each patch",
    "agent_patches.png": "What the agent keeps of eight validation images",
}


def draw_agent(agent, dataset, folder, images=8):
    """Write `AGENT_PICTURES`.

    Args:
        agent: the `PatchAgent` of a finished training.
        dataset: an `ImageDataset` prepared as for evaluation; its first images are shown.
        folder: where to write.
    """
    (keep_map, agent_patches), grid = (Path(folder) / file for file in AGENT_PICTURES), agent.keep_map()
    keep_map_plot(grid, agent.name, keep_map)
    items = [dataset[index] for index in range(min(images, len(dataset)))]
    pixel_values = torch.stack([item["pixel_values"] for item in items])
    patches = agent.evaluation_patches(pixel_values.to(agent.kept.device))
    processor = dataset.transform.processor
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    image_plot(unnormalise(pixel_values, mean, std), keep_masks(patches, len(items), grid.shape), agent_patches)


def keep_masks(patches, images, shape):
    """Indices (K,), (B, K) or None, as agents give them, as floats (B, rows, columns), 1 where a patch is kept."""
    if patches is None:
        return torch.ones(images, *shape)
    masks = torch.zeros(images, shape[0] * shape[1])
    return masks.scatter_(1, patches.cpu().expand(images, -1), 1.0).unflatten(1, shape)


def keep_map_plot(shares, name, path):
    """shares (rows, columns) of the training images that kept each patch, as numbers and shades, to a PNG file."""
    figure = new_figure(0.55 * shares.shape[1] + 1.0, 0.5 * shares.shape[0] + 0.7, layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    if shares.numel() <= 256:
        for row, values in enumerate(shares.tolist()):
            for column, share in enumerate(values):
                color = PAGE if share > 0.6 else INK
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"{name}: kept in training, % of images", fontsize=8, color=INK, loc="left")
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path, dpi=150, facecolor=PAGE)


def image_plot(images, masks, path):
    """images (B, height, width, 3) above what is kept of them, masks (B, rows, columns), to a PNG file."""
    figure = new_figure(1.2 * len(images) + 0.2, 2.6, layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        frame(axes[0][column], image.numpy(), "")
        frame(axes[1][column], fade(image, mask).numpy(), f"{int(mask.sum())} of {mask.numel()}")
    figure.savefig(path, dpi=150, facecolor=PAGE)


def curves_plot(curves, path):
    """Accuracy against measured seconds of training, to a PNG file.

    Args:
        curves: variant -> list of (seconds, accuracy in [0, 1]) in the order of training.
    """
    figure = new_figure(6.4, 4.2, layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        style = {"color": INK, "linewidth": 2.0} if name == "none" else {"linewidth": 1.4}
        seconds, accuracies = zip(*points, strict=True)
        label = "all patches" if name == "none" else name
        axis.plot(seconds, [100 * accuracy for accuracy in accuracies], marker="o", markersize=4, label=label, **style)
    axis.set(xlabel="measured training time, s", ylabel="top-1 on all patches, %")
    axis.grid(color=TRACK, linewidth=0.8)
    axis.tick_params(labelsize=8.5, colors=MUTED)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, facecolor=PAGE)
