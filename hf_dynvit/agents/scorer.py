"""What agentvit-plus reads of each patch, and the small network that scores it.

Letters: B images, n patches, D channels of a token, F features in all.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..model.novelty import novelty, novelty_macs


class PatchScorer(nn.Module):
    """Features (B, n, F) -> logits (B, n), each from its own patch; fresh, choices are uniform but for the novelty.

    Args:
        hidden: width of the layer between, 0: linear.
        novelty: what the last feature, the patch's novelty, counts at first; 0: it is a feature like any other.
    """

    def __init__(self, features, hidden, novelty=0.0):
        super().__init__()
        self.score = nn.Linear(hidden or features, 1, bias=False)  # a common shift changes no choice
        nn.init.zeros_(self.score.weight)
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.GELU()) if hidden else nn.Identity()
        self.novelty = nn.Parameter(torch.tensor(float(novelty))) if novelty else None

    def forward(self, features):
        logits = self.score(self.body(features)).squeeze(-1)
        return logits if self.novelty is None else logits + self.novelty * features[..., -1]


def patch_features(tokens, pixel_values, grid, statistics, position, novelty=False):
    """Normalised tokens, and what else is asked for, side by side: float32 (B, n, F), F as `feature_count` says.

    Args:
        tokens: (B, n, D), those that enter the first layer.
        pixel_values: (B, channels, height, width). grid: the host's patch embeddings, for the sizes.
        statistics: also the patch's brightness and contrast, relative to the other patches of its image.
        position: also its row and column, from -1 to 1, and its squared distance from the centre.
        novelty: also, as the last feature, how little it shares with earlier patches (`pixel_novelty`).
    """
    parts = [F.layer_norm(tokens.float(), tokens.shape[-1:])]
    if statistics:
        parts.append(patch_statistics(pixel_values, grid))
    if position:
        parts.append(patch_places(grid).to(tokens.device).expand(len(tokens), -1, -1))
    if novelty:
        parts.append(pixel_novelty(pixel_values, grid).unsqueeze(-1))
    return torch.cat(parts, 2)


def feature_count(width, statistics, position, novelty=False):
    return width + 2 * statistics + 3 * position + bool(novelty)


def pixel_novelty(pixel_values, grid):
    """`novelty` (B, n) of the patches' pixels, taken from the image's mean: an empty background is new once."""
    pixels = pixel_values.float()
    pixels = pixels - pixels.mean((1, 2, 3), keepdim=True)
    patches = F.unfold(pixels, grid.patch_size, stride=grid.patch_size).transpose(1, 2)  # (B, n, pixels of a patch)
    # A row for [CLS], and a column by which patches that are the mean itself, and have no direction, are alike.
    return novelty(F.pad(patches, (0, 1, 1, 0), value=1e-3))[:, 1:]


def pixel_novelty_macs(config, patches):
    """MACs of `pixel_novelty` for one image of n patches."""
    patch = config.patch_size
    pixels = patch * patch if isinstance(patch, int) else patch[0] * patch[1]
    return novelty_macs(patches + 1, pixels * config.num_channels + 1)


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
