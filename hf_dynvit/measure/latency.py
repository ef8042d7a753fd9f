"""The measured time of each layer, as weights of what a decision costs."""

import torch

from .timing import interleaved_medians


@torch.no_grad()
def layer_latencies(model, pixel_values, rounds=20):
    """Share of the layers' time that each layer takes on this device, run densely.

    Args:
        model: a `DynViTModel`; its gates are not asked.
        pixel_values: (B, channels, height, width), the batch to time.

    Returns:
        (L,) floats that sum to 1.
    """
    was_training = model.training
    model.eval()
    tokens = model.vit.embeddings(pixel_values)
    calls = {str(index): lambda _, layer=layer: layer(tokens) for index, layer in enumerate(model.vit.layers)}
    medians = interleaved_medians(calls, rounds)
    model.train(was_training)
    seconds = torch.tensor([medians[name] for name in calls])
    return seconds / seconds.sum()
