"""Tokens leave the stream of one image, in operations that OpenVINO and ONNX Runtime have.

What a gate and its matching compute is called, not written anew. Who stays is found by `nonzero`, whose length the runtime
learns as it goes; what leaves is added by a product with a matrix that has one entry a row: runtimes differ in what they
make of an indexed sum.

Letters: N tokens before, K after, A tokens that may leave, D channels, S numbers per token.
"""

from typing import NamedTuple

import torch

from ..model.decisions import TokenState
from ..model.gate import NO_EXPLORATION
from ..model.gate_tome import TomeGate
from ..model.matching import Matching, match
from ..model.rows import directions


class Tokens(NamedTuple):
    """The stream of one image."""

    x: torch.Tensor  # (N, D)
    count: torch.Tensor  # (1,) N as a float
    size: torch.Tensor | None = None  # (N,) patches that a token stands for; None: one each
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


def leave(gate, normed, tokens, words):
    """The `Tokens` that a gate keeps, with what the others have left them, and what the search for partners took.

    Args:
        gate: one that drops. normed: (N, D) after the norm. words: `word_places` of the longest stream.

    Returns:
        `Tokens`, and multiply-accumulates (1,) or 0 that the gate's own `macs` does not count.
    """
    num_tokens, first = tokens.x.shape[0], gate.protected.stop
    if gate.pairs:
        found = match(normed[None], protected=gate.protected)
        stays = _stays(gate, normed[None], found)
        keep = torch.cat((stays.new_ones(1), stays[0])).index_select(0, words[:num_tokens])
    else:
        keep = gate(normed[None], "threshold")[0]
    kept = keep.nonzero().squeeze(1)  # (K,)
    if isinstance(gate, TomeGate) and isinstance(num_tokens, int):  # as many for every image: the graph knows
        kept = kept.view(num_tokens - min(gate.merged, (num_tokens - first) // 2))
    if torch.compiler.is_exporting():  # which sizes to trace for; the operations are right for fewer, too
        torch._check(kept.shape[0] > 2)
    count = keep.sum(dtype=torch.float32).view(1)
    left = Tokens(*(None if each is None else each.index_select(0, kept) for each in (tokens.x, None, tokens.size)))
    left = left._replace(count=count, side=None if tokens.side is None else tokens.side.index_select(0, kept))
    if not gate.merge:
        return left, 0
    size = tokens.x.new_ones(num_tokens) if tokens.size is None else tokens.size
    if gate.pairs:
        source, amount = tokens.x[found.rows], torch.where(stays[0], 0.0, size[found.rows])
        return _received(left, source, amount, found.partner[0], kept), 0
    gone = (
        (~keep | (words.new_ones(keep.shape).cumsum(0) <= first)).nonzero().squeeze(1)
    )  # the protected, for there to be any
    into = _nearest(normed, gone, kept, first)
    goes = (gone >= first) * (count > first)  # not the protected, and nobody where only they are left
    source, amount = tokens.x.index_select(0, gone), size.index_select(0, gone) * goes
    searched = (tokens.count - count) * (count - first) * normed.shape[1]
    return _received(left, source, amount, into, kept), searched


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


def _received(left, source, amount, into, kept):
    """`left` with rows source (A, D), which weigh amount (A,), merged into their partners `into` among `kept` (K,)."""
    moves = torch.where(into.unsqueeze(1) == kept, amount.unsqueeze(1), 0.0)  # (A, K)
    before = source.new_ones(kept.shape) if left.size is None else left.size
    size = before + moves.sum(0)
    x = (left.x * before.unsqueeze(1) + moves.T @ source) / size.unsqueeze(1)
    return left._replace(x=x, size=size)
