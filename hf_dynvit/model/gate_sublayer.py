"""AdaViT's sub-layer gate: the [CLS] token entering a block switches attention and MLP separately."""

from .gate import Gate


class SublayerGate(Gate):
    """`Linear(D, 2)` on the [CLS] token: attention, MLP (AdaViT, section 3.2)."""

    slots = ("sublayers",)

    def __init__(self, config, **options):
        super().__init__(config.hidden_size, 2, **options)

    def logits(self, tokens, alive=None):
        return self.score(tokens[:, 0])  # (B, 2)
