"""What agentvit-plus reads of each patch, and the small network that scores it.

Letters: B images, n patches, D channels of a token, F features in all.
"""

import torch
from torch import nn
from torch.nn import functional as F


class PatchScorer(nn.Module):
    """Features (B, n, F) -> logits (B, n), each from its own patch; fresh, all are 0 and choices uniform.

    Args:
        hidden: width of the layer between, 0: linear.
    """

    def __init__(self, features, hidden):
        super().__init__()
        self.score = nn.Linear(hidden or features, 1, bias=False)  # a common shift changes no choice
        nn.init.zeros_(self.score.weight)
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.GELU()) if hidden else nn.Identity()

    def forward(self, features):
        return self.score(self.body(features)).squeeze(-1)


def patch_features(tokens, pixel_values, grid, statistics, position):
    """Normalised tokens, and what else is asked for, side by side: float32 (B, n, F), F as `feature_count` says.

    Args:
        tokens: (B, n, D), those that enter the first layer.
        pixel_values: (B, channels, height, width). grid: the host's patch embeddings, for the sizes.
        statistics: also the patch's brightness and contrast, relative to the other patches of its image.
        position: also its row and column, from -1 to 1, and its squared distance from the centre.
    """
    parts = [F.layer_norm(tokens.float(), tokens.shape[-1:])]
    if statistics:
        parts.append(patch_statistics(pixel_values, grid))
    if position:
        parts.append(patch_places(grid).to(tokens.device).expand(len(tokens), -1, -1))
    return torch.cat(parts, 2)


def feature_count(width, statistics, position):
    return width + 2 * statistics + 3 * position


def patch_statistics(pixel_values, grid):
    """Mean of each patch's pixels and their deviation within channels, both standardised over the image: (B, n, 2)."""
    pixels = pixel_values.float()
    mean, square = (F.avg_pool2d(values, grid.patch_size) for values in (pixels, pixels**2))
    deviation = (square - mean**2).clamp(min=0).mean(1).sqrt()
    values = torch.stack((mean.mean(1), deviation), -1).flatten(1, 2)  # (B, n, 2)
    return (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True, correction=0) + 1e-6)


def patch_places(grid):
    """Row and column from -1 to 1 and the squared distance from the centre, float32 (n, 3)."""
    rows, columns = (side // patch for side, patch in zip(grid.image_size, grid.patch_size, strict=True))
    y, x = (((torch.arange(count) + 0.5) * 2 / count - 1) for count in (rows, columns))
    places = torch.cartesian_prod(y, x)
    return torch.cat((places, places.square().sum(1, keepdim=True)), 1)
