"""Gates that draw at random."""

import torch

from .bypass import build_bypass
from .decisions import UNTOUCHED
from .gate import NO_EXPLORATION, Gate
from .gate_patch import PatchGate
from .options import check_choice, check_options


def draws_at_random(model):
    """Whether the decisions of a model are other ones in each forward; by name, for code that came with a model counts, too."""
    return any(type(module).__name__ in ("RandomGate", "RandomScorer") for module in model.modules())


class RandomGate(Gate):
    """The baseline every learned gate must beat: units kept at random, at a fixed rate, in training and evaluation.

    Each unit of each image is kept with probability `rate`, independently; protected tokens, [CLS], always.

    Args:
        unit: `"patch"`, `"head"`, `"sublayer"` or `"block"` (attention and MLP alike).
        rate: probability in [0, 1].
        on, drop, merge: for patches, as in `PatchGate`.
        bypass, rank: for sub-layers and blocks, as in `BlockGate`.
    """

    reads_all = True  # the next draw is another one if this one is shorter

    def __init__(self, config, unit="patch", rate=0.5, on="block", drop=False, merge=False, bypass="none", rank=32):
        super().__init__()
        check_choice("a random gate", "on", on, PatchGate.SLOTS)
        slots = {"patch": PatchGate.SLOTS[on], "head": ("heads",), "sublayer": ("sublayers",), "block": ("sublayers",)}
        check_choice("a random gate", "unit", unit, slots)
        check_options("a random gate", rate=rate, drop=drop, merge=merge)
        if (drop and (unit, on) != ("patch", "block")) or (merge and not drop):
            raise ValueError(
                "a random gate drops patches of a block permanently, and merges what it drops, or neither"
            )
        self.drop, self.merge = drop, merge
        self.slots, self.rate, self.unit = slots[unit], rate, unit
        self.units = {"head": config.num_attention_heads, "sublayer": 2, "block": 1}.get(unit)
        self.whole = unit == "block"
        self.bypass = build_bypass("a random gate", config, bypass, rank, self.whole)
        if self.bypass is not None and unit not in ("sublayer", "block"):
            raise ValueError(f"a random gate of {unit!r} skips no sub-layer: bypass must be 'none', got {bypass!r}")

    def forward(self, tokens, gating, replay=None, exploration=NO_EXPLORATION, state=UNTOUCHED):
        if replay is not None:
            return replay
        units = self.units or tokens.shape[1]
        keep = torch.rand(tokens.shape[0], units, device=tokens.device) < self.rate
        if self.unit == "patch":
            keep[:, self.protected] = True
        return keep.expand(-1, 2) if self.whole else keep
