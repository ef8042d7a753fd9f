"""Running means of returns and costs, which a batch of one image is compared with."""

import torch


WINDOW = 64  # images that a running mean remembers


class RunningMoments:
    """Means over about the last `WINDOW` images of a process; tensors, so that no step waits for the device.

    Letters: L layers that decide, K all layers.

    Attributes:
        mean: (K,) of the returns of each layer. square: of their squared distance from it. cost: of the costs.
        seen: (K,) images so far, at most `WINDOW`. images: the same, of all layers.
    """

    FIELDS = ("mean", "square", "cost", "seen", "images")

    def __init__(self, layers, device):
        self.mean = torch.zeros(layers, device=device)
        self.square, self.cost, self.images = (torch.zeros((), device=device) for _ in range(3))
        self.seen = torch.zeros(layers, device=device)

    def normalised(self, returns, deciding):
        """Advantages (L, 1): returns (L, 1) less the means so far, over their deviation, in which they count.

        The means hold no draw of this image, so that the policy gradient keeps its direction; its size does not, or returns that
        were alike so far would leave nearly nothing to divide by. The first image of a layer that
        joins later (curriculum) only sets its mean.
        """
        known = (self.seen[deciding, None] > 0) | (self.images == 0)
        centred = (returns - self.mean[deciding, None]) * known
        own = centred.square().mean()
        share = 1 / (self.images + 1).clamp(max=WINDOW)  # as `update` will; so none is beyond sqrt(L * WINDOW)
        return centred / (self.square + share * (own - self.square)).sqrt().clamp(min=1e-6)

    def distance(self, budget):
        """The running mean cost's distance from a budget, a scalar; 0 before the first image."""
        return torch.where(self.images > 0, self.cost - budget, torch.zeros_like(self.cost))

    @torch.no_grad()
    def update(self, returns, cost, deciding):
        """Take in returns (L, B) and costs (B,) of a batch; deciding: the L layers."""
        batch = len(cost)
        distance = returns - self.mean[deciding, None]
        known = (self.seen[deciding, None] > 0) | (self.images == 0)
        spread = (distance.square() * known).sum() / (known.sum() * batch).clamp(min=1)
        self.seen[deciding] = (self.seen[deciding] + batch).clamp(max=WINDOW)
        self.images = (self.images + batch).clamp(max=WINDOW)
        share = (batch / self.images).clamp(max=1)
        self.square = self.square + share * (spread - self.square)
        self.cost = self.cost + share * (cost.float().mean() - self.cost)
        self.mean[deciding] += (batch / self.seen[deciding]).clamp(max=1) * distance.mean(1)

    def state(self):
        """JSON-ready; exact."""
        return {name: getattr(self, name).tolist() for name in self.FIELDS}

    def load(self, saved):
        for name in self.FIELDS:
            setattr(self, name, torch.tensor(saved[name], device=self.mean.device, dtype=torch.float32))
