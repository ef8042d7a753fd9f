"""Fewer patches by smaller images: pixels are resized in front of the embeddings, which interpolate their positions.

A checkpoint, its image processor and its teacher keep their size; the model alone looks at less, and its cost stays
relative to the dense model on the images as they come. Resizing is no matrix product and does not count.

Letters: B images.
"""

from torch.nn import functional as F

from .configuration_dynvit import pair
from .host import sizes_of


def resized(pixel_values, resolution):
    """pixel_values (B, channels, height, width) -> (B, channels, *resolution); images of that size are left alone."""
    if tuple(pixel_values.shape[2:]) == pair(resolution):
        return pixel_values
    found = F.interpolate(pixel_values.float(), pair(resolution), mode="bicubic", antialias=True)
    return found.to(pixel_values.dtype) if pixel_values.is_floating_point() else found  # bytes would wrap around


def tokens_of(config, size):
    """Tokens of an image of that size (height, width), protected ones included."""
    (height, width), (patch_height, patch_width) = size, pair(config.patch_size)
    return (height // patch_height) * (width // patch_width) + sizes_of(config).protected


def tokens_dense(config, size):
    """Tokens that the dense model has of images given in that size; those resized beforehand, to that of the model or of any look,
    stand for the configured size."""
    looks = [config.resolution] if config.cascade is None else [look.get("resolution") for look in config.cascade]
    beforehand = tuple(size) in {pair(own) for own in looks if own is not None}
    return sizes_of(config).tokens if beforehand else tokens_of(config, size)


def tokens_run(config, look=None):
    """Tokens that enter the first layer, of an image of the configured size; look: of a cascade, counted from 0."""
    resolution = config.resolution if look is None else config.cascade[look].get("resolution")
    return sizes_of(config).tokens if resolution is None else tokens_of(config, pair(resolution))
