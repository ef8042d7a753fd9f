"""Where the tokens that stay and those that leave stand, in tensors as long as the fullest image needs, or as is known ahead.

Letters: B images, N tokens before, K after, A that may leave.
"""

from typing import NamedTuple

import torch

from ..model.decisions import as_action
from ..model.gate_merge import MergeGate
from ..model.gate_pitome import PitomeGate
from ..model.gate_token import TokenGate
from ..model.gate_tome import TomeGate


class Parting(NamedTuple):
    """How tokens part in a layer."""

    fixed: int | None = None  # K, where it is the same for every image and so the graph's; None: it is not known ahead
    many: bool = False  # several images at a time
    step: int = 1  # what K is rounded up to a multiple of, or to N: above 1 there is padding

    def kept(self, keep, count):
        """Places (B, K) of the tokens that stay, and bool (B, K) of those that are not padding; None: all.

        Args:
            keep: bool (B, N). count: (B,) tokens that it keeps, as floats.
        """
        if self.fixed is not None:
            return _order(keep)[:, : self.fixed], None
        if not self.many and self.step == 1:
            return _hinted(keep[0].nonzero().squeeze(1)).unsqueeze(0), None
        most = count.max()
        places = torch.arange(keep.shape[1], device=keep.device)
        columns = _hinted((places < most + -most % self.step).nonzero().squeeze(1))  # (K,)
        return _order(keep).index_select(1, columns), columns < count.unsqueeze(1)

    def gone(self, keep, count, first):
        """Places (B, A) of all tokens that leave, and bool (B, A) of which of them do. first: number of protected tokens."""
        if self.fixed is not None:
            gone = _order(keep)[:, self.fixed :]
            return gone, gone >= first
        places, some = torch.arange(keep.shape[1], device=keep.device), (count > first).unsqueeze(1)
        if not self.many and self.step == 1:
            gone = (~keep[0] | (places < first)).nonzero().transpose(0, 1)  # the protected, too, for there to be any
            return gone, (gone >= first) & some
        columns = ((places >= count.min()) | (places == keep.shape[1] - 1)).nonzero().squeeze(1)  # (A,), there is one
        return _order(keep).index_select(1, columns), (columns >= count.unsqueeze(1)) & some


def fixed_counts(model):
    """For each layer how many tokens it leaves an image of the model's size, where that is known; None: it is not.

    A gate that keeps as many of every image is asked with tokens that are all alike.
    """
    counts, known = [], model.tokens_run
    for index, gates in enumerate(model.gates):
        gate = gates["attention_tokens"] if "attention_tokens" in gates else None
        allowed = model.config.layer_mask is None or any(model.config.layer_mask[index])
        if gate is not None and gate.drop and allowed and known is not None:
            with torch.no_grad():
                alike = torch.zeros(1, known, model.config.hidden_size)
                known = int(as_action(gate(alike, "threshold")).keep.sum()) if keeps_as_many(gate) else None
        counts.append(known)
    return counts


def keeps_as_many(gate):
    """Whether how many tokens stay depends on how many there are alone."""
    if isinstance(gate, TokenGate):
        return gate.amount in ("keep", "top") or getattr(gate, "by_rank", False)
    if isinstance(gate, MergeGate):
        return gate.merged is not None
    return isinstance(gate, (TomeGate, PitomeGate))


def _order(keep):
    """int64 (B, N): the places of the tokens that stay, in their order, and then those of the others."""
    places = torch.arange(keep.shape[1], dtype=torch.float32, device=keep.device)
    return torch.where(keep, places, places + keep.shape[1]).argsort(
        1
    )  # no two alike: runtimes differ in who is first


def _hinted(found):
    if torch.compiler.is_exporting():  # which sizes to trace for; the operations are right for fewer, too
        torch._check(found.shape[0] > 2)
    return found
