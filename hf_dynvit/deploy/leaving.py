"""Tokens leave the stream of one image, in operations that OpenVINO and ONNX Runtime have.

What a gate and its matching compute is called, not written anew. Who stays is found by `nonzero`, whose length the runtime
learns as it goes; what leaves is added by a product with a matrix that has one entry a row: runtimes differ in what they
make of an indexed sum.

Letters: N tokens before, K after, A tokens that may leave, D channels, S numbers per token.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..model.decisions import Places, TokenState
from ..model.gate import NO_EXPLORATION
from ..model.gate_tome import TomeGate
from ..model.matching import Matching, match
from ..model.rows import directions


AT_THE_END = Places(None, None)  # rows of size 0 come last, as those that a compacted stream is padded with


class Tokens(NamedTuple):
    """The stream of one image."""

    x: torch.Tensor  # (N, D)
    count: torch.Tensor  # (1,) N without padding, as a float
    size: torch.Tensor | None = None  # (N,) patches that a token stands for, 0: it is padding; None: one each
    side: torch.Tensor | None = None  # (N, S)


class Half(Matching):
    """A `Matching` that leaves what is said of those that may leave as it is: (1, A)."""

    def spread(self, values, among):
        return values


def word_places(num_tokens, first):
    """Int64 (N,): where in [kept, *what is said of those that may leave] the word for each token of a stream stands.

    It is the same for shorter streams. first: number of protected tokens, which come first.
    """
    patches = torch.arange(num_tokens) - first
    return torch.where((patches > 0) & (patches % 2 == 1), (patches + 1) // 2, 0)


def leave(gate, normed, tokens, words, step=1):
    """The `Tokens` that a gate keeps, with what the others have left them, and what the search for partners took.

    Args:
        gate: one that drops. normed: (N, D) after the norm. words: `word_places` of the longest stream.
        step: what K is rounded up to a multiple of, by rows of size 0; above 1 all gates that drop are `MergeGate`.

    Returns:
        `Tokens`, and multiply-accumulates (1,) or 0 that the gate's own `macs` does not count.
    """
    num_tokens, first = tokens.x.shape[0], gate.protected.stop
    if gate.pairs:
        padded = step > 1 and tokens.size is not None
        state = TokenState(alive=tokens.size[None], places=AT_THE_END) if padded else TokenState()
        found = match(normed[None], state, gate.protected)
        stays = _stays(gate, normed[None], found)
        keep = torch.cat((stays.new_ones(1), stays[0])).index_select(0, words[:num_tokens])
        keep = keep & (tokens.size > 0.5) if padded else keep
    else:
        keep = gate(normed[None], "threshold")[0]
    count = keep.sum(dtype=torch.float32).view(1)
    chosen = keep if step == 1 else torch.cat((keep, torch.arange(step - 1) < -count % step))
    kept = chosen.nonzero().squeeze(1)  # (K,), of which those beyond N are new rows
    if isinstance(gate, TomeGate) and isinstance(num_tokens, int):  # as many for every image: the graph knows
        kept = kept.view(num_tokens - min(gate.merged, (num_tokens - first) // 2))
    if torch.compiler.is_exporting():  # which sizes to trace for; the operations are right for fewer, too
        torch._check(kept.shape[0] > 2)
    side = None if tokens.side is None else _lengthened(tokens.side, step).index_select(0, kept)
    if not gate.merge:
        size = None if tokens.size is None else tokens.size.index_select(0, kept)
        return Tokens(tokens.x.index_select(0, kept), count, size, side), 0
    sums = _sums(tokens)
    if gate.pairs:
        gone, into, searched = sums[found.rows], torch.where(stays[0], -1, found.partner[0]), 0
    else:
        rows = (~keep | (words.new_ones(keep.shape).cumsum(0) <= first)).nonzero().squeeze(1)
        # The protected, too, for there to be any; they do not go, and nobody does where only they are left.
        goes = (rows >= first) & (count > first)
        gone, into = sums.index_select(0, rows), torch.where(goes, _nearest(normed, rows, kept, first), -1)
        searched = (tokens.count - count) * (count - first) * normed.shape[1]
    moves = (kept.unsqueeze(1) == into).to(sums.dtype)  # (K, A)
    sums = _lengthened(sums, step).index_select(0, kept) + moves @ gone
    size = sums[:, -1:]
    x = sums[:, :-1] / (size if step == 1 else size.clamp_min(1.0))
    return Tokens(x, count, size.squeeze(1), side), searched


def _sums(tokens):
    """(N, D + 1): of each token the sum over its patches, and how many they are."""
    if tokens.size is None:
        return torch.cat((tokens.x, tokens.x.new_ones(tokens.x.shape[0], 1)), 1)
    size = tokens.size.unsqueeze(1)
    return torch.cat((tokens.x * size, size), 1)


def _lengthened(rows, step):
    """rows (N, ...) and step - 1 rows of zeros."""
    return rows if step == 1 else F.pad(rows, (0, 0, 0, step - 1))


def _stays(gate, normed, found):
    """Bool (1, A): which of those that may leave stay."""
    if not isinstance(gate, TomeGate):
        return gate.decide(gate.logits(normed, TokenState(), Half(*found)), "threshold", NO_EXPLORATION)
    first = found.distance.argsort(1)[:, : gate.merged]
    return torch.ones_like(found.distance, dtype=torch.bool).scatter(1, first, False)


def _nearest(normed, gone, kept, first):
    """As `merging.nearest`: the patch among `kept` (K,) most like each of the tokens `gone` (A,)."""
    likeness = normed.index_select(0, gone) @ directions(normed.index_select(0, kept)).T  # (A, K)
    return kept.index_select(0, likeness.masked_fill(kept < first, -torch.inf).argmax(1))
