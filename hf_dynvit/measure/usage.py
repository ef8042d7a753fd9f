"""How much of each kind of unit the layers use, averaged over many images."""


class UsageMeter:
    """Running mean of decisions, per layer and kind.

    Attributes:
        sums: slot -> layer -> (sum of the keep rates of images, number of images).
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.sums = {}

    def update(self, decisions):
        """Add L `LayerDecisions` of one batch."""
        for layer, decision in enumerate(decisions):
            for slot, keep in decision.keeps().items():
                parts = {slot: keep} if slot != "sublayers" else {"attention": keep[:, 0], "mlp": keep[:, 1]}
                for kind, part in parts.items():
                    total, images = self.sums.setdefault(kind, {}).get(layer, (0.0, 0))
                    rate = part.detach().float().mean() * len(part)
                    self.sums[kind][layer] = (total + rate, images + len(part))

    def per_layer(self):
        """kind -> {layer: mean share of units kept}."""
        return {
            kind: {layer: float(total / images) for layer, (total, images) in layers.items()}
            for kind, layers in self.sums.items()
        }

    def means(self):
        """kind -> mean share of units kept over the layers that decide."""
        return {kind: sum(layers.values()) / len(layers) for kind, layers in self.per_layer().items()}

    def flat(self, prefix):
        """`{prefix}usage/{kind}/{layer}` -> share, as a Trainer logs it."""
        return {
            f"{prefix}usage/{kind}/{layer}": round(share, 4)
            for kind, layers in self.per_layer().items()
            for layer, share in layers.items()
        }
