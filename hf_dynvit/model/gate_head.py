"""Gates of attention heads."""

from .decisions import UNTOUCHED
from .gate import LearnedGate
from .options import check_choice


class HeadGate(LearnedGate):
    """AdaViT's head gate: the [CLS] token entering a block decides which attention heads the image uses.

    `Linear(D, H)` on [CLS] (section 3.2).

    Args:
        deactivation: what a head that is off removes. `"attention"`: its queries, keys, values and output;
            `"official"` (the published code): also its channels of the MLP's input.
    """

    slots = ("heads",)
    DEACTIVATIONS = ("attention", "official")

    def __init__(self, config, deactivation="attention", **options):
        check_choice("a head gate", "deactivation", deactivation, self.DEACTIVATIONS)
        super().__init__(config.hidden_size, config.num_attention_heads, **options)
        self.hides_channels = deactivation == "official"

    def logits(self, tokens, state=UNTOUCHED):
        return self.score(tokens[:, 0])  # (B, H)
