"""AdaViT's head gate: the [CLS] token entering a block decides which attention heads the image uses."""

from .gate import Gate


class HeadGate(Gate):
    """`Linear(D, H)` on the [CLS] token (AdaViT, section 3.2).

    Args:
        deactivation: what a head that is off removes. `"attention"`: its queries, keys, values and output;
            `"official"` (the published code): also its channels of the MLP's input.
    """

    slots = ("heads",)
    DEACTIVATIONS = ("attention", "official")

    def __init__(self, config, deactivation="attention", **options):
        super().__init__(config.hidden_size, config.num_attention_heads, **options)
        if deactivation not in self.DEACTIVATIONS:
            raise ValueError(f"deactivation must be one of {self.DEACTIVATIONS}, got {deactivation!r}")
        self.deactivation = deactivation

    def logits(self, tokens, alive=None):
        return self.score(tokens[:, 0])  # (B, H)
