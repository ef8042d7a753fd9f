"""Merges in a number that is known ahead, as runtimes want it that prepare each operator anew where a size changes.

A graph of fixed sizes gives up what an image of few details saves, and keeps what is learned: which tokens must not leave.

Letters: B images, N tokens, A of them that may leave.
"""

import torch

from ..model.gate_merge import KEPT, MergeGate


class FixedMerge(MergeGate):
    """A merge gate without a threshold: as many pairs of every image merge, those of the least logit.

    Attributes:
        merged: their number; fewer where there are fewer.
    """

    def decide(self, logits, gating, exploration):
        """As in `LearnedGate`, of logits (B, N) or (B, A), whatever the gating."""
        least = logits.argsort(1)[:, : self.merged]
        return torch.ones_like(logits, dtype=torch.bool).scatter(1, least, False) | (logits >= KEPT)


def check_fixable(model):
    """Raise ValueError for a model in which something else than merge gates says how many tokens there are, or nothing does."""
    drops = {type(gate).__name__ for gates in model.gates for gate in gates.values() if gate.drop}
    if drops != {MergeGate.__name__}:
        raise ValueError(
            f"merges can be fixed where merge gates alone drop tokens, here it is {sorted(drops) or 'nothing'}"
        )


@torch.no_grad()
def fix_merges(model, pixel_values):
    """Every merge gate merges what it has merged on average, of these images, from here on.

    Of a cascade that is of all images in every look, though few of them, the harder ones, come to a later look.

    Args:
        model: of one look, in evaluation mode, changed in place. pixel_values: float32 (images, channels, height, width).

    Returns:
        List of L ints, the merges of each layer.
    """
    left = torch.zeros(len(model.gates))
    for image in pixel_values.split(1):
        kept = [decided.attention_tokens for decided in model(image, return_dict=True).decisions]
        left += torch.tensor([model.tokens_run if keep is None else int(keep.sum()) for keep in kept])
    left = [model.tokens_run, *(left / len(pixel_values)).round().int().tolist()]
    merged = [before - after for before, after in zip(left, left[1:], strict=False)]
    for gates, count in zip(model.gates, merged, strict=True):
        for gate in gates.values():
            if type(gate) is MergeGate:
                gate.__class__, gate.merged = FixedMerge, count
    return merged
