"""Gates of blocks and sub-layers, which read one token."""

from .bypass import build_bypass
from .decisions import UNTOUCHED
from .gate import LearnedGate
from .options import check_choice, check_options


class BlockGate(LearnedGate):
    """The layer-skipping gate: a policy per layer reads one token and runs the block or passes it by.

    The published policy (Mersha & Assefa, 2022) is a softmax over two logits, of which only the difference matters: `Linear(D, 1)` is the same.

    Args:
        granularity: `"block"`: one decision for both; `"sublayer"`: attention and MLP are decided apart.
        pool: what is read: `"cls"`, or `"mean"` of all tokens.
        upfront: read what enters the first layer with such a gate, instead of this one: all decisions at once.
        bypass: what is added where it skips, to the tokens that would have been computed, one of `BYPASSES` (bypass.py):
            "none": nothing. One for a block, which counts where neither attention nor MLP runs, or one for each.
        rank: of bypass "low_rank".
    """

    slots = ("sublayers",)
    GRANULARITIES = {"block": 1, "sublayer": 2}
    POOLS = ("cls", "mean")

    def __init__(self, config, granularity="block", pool="cls", upfront=False, bypass="none", rank=32, **options):
        check_choice("a block gate", "granularity", granularity, self.GRANULARITIES)
        check_choice("a block gate", "pool", pool, self.POOLS)
        check_options("a block gate", upfront=upfront)
        super().__init__(config.hidden_size, self.GRANULARITIES[granularity], **options)
        self.whole, self.pooling, self.upfront = granularity == "block", pool, upfront
        self.reads_all = pool == "mean"
        self.bypass = build_bypass("a block gate", config, bypass, rank, self.whole)

    def pool(self, tokens):
        return tokens[:, 0] if self.pooling == "cls" else tokens.mean(1)

    def logits(self, tokens, state=UNTOUCHED):
        return self.score(self.pool(tokens))  # (B, 1) or (B, 2)

    def settle(self, keep):
        return keep.expand(-1, 2)


class SublayerGate(BlockGate):
    """AdaViT's sub-layer gate: the [CLS] token entering a block switches attention and MLP separately.

    Section 3.2; `BlockGate` with granularity `"sublayer"`, under the name that configurations have for it.
    """

    def __init__(self, config, **options):
        super().__init__(config, granularity="sublayer", **options)
