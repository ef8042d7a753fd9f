"""Ridge regression from sums, so that the tokens of many images need not be kept.

Letters: T samples, D features, E targets.
"""

import torch


class Moments:
    """Sums over features x (T, D) and targets y (T, E), in float64."""

    def __init__(self):
        self.count, self.x, self.y, self.xx, self.xy, self.squares = 0, 0, 0, 0, 0, 0

    def add(self, x, y):
        """x (T, D), y (T, E)."""
        x, y = (t.to("cpu" if t.device.type == "mps" else t.device).double() for t in (x, y))
        self.count += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy, self.squares = self.xx + x.T @ x, self.xy + x.T @ y, self.squares + y.square().sum()

    def __add__(self, other):
        """The sums of both."""
        both = Moments()
        for name, value in vars(self).items():
            setattr(both, name, value + getattr(other, name))
        return both

    def centred(self, ridge):
        """Covariances (D, D) with the ridge and (D, E), and the variance of y, all targets together.

        The ridge is relative to the mean variance of the features.

        Raises:
            ValueError: samples that are not finite.
        """
        x, y = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - x.outer(x)
        crossed, variance = self.xy / self.count - x.outer(y), self.squares / self.count - y @ y
        if not torch.isfinite(variance + covariance.sum()):
            raise ValueError("the images give tokens that are not finite: nothing can be fitted to them")
        strength = (ridge * covariance.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
        regular = covariance + strength * torch.eye(len(x), dtype=x.dtype, device=x.device)
        return regular, crossed, variance

    def solve(self, ridge):
        """The weight (D, E) of the linear map from x to y with that penalty; the constant has none."""
        regular, crossed, _ = self.centred(ridge)
        return torch.linalg.solve(regular, crossed)

    def constant(self, weight):
        """The constant (E,) that belongs to a weight (D, E)."""
        return self.y / self.count - self.x / self.count @ weight

    def explained(self, weight):
        """The share of the variance of y that a map with its constant explains; 0 where y is constant."""
        covariance, crossed, variance = self.centred(0.0)
        explained = (weight * (2 * crossed - covariance @ weight)).sum()
        return (explained / variance).item() if variance > 0 else 0.0
