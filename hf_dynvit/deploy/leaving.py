"""Tokens leave the streams of images, in operations that OpenVINO and ONNX Runtime have.

What a gate and its matching compute is called, not written anew. What leaves is added by a product with a matrix that has at
most one entry a column: runtimes differ in what they make of an indexed sum.

Letters: B images, N tokens before, K after, A tokens that may leave, D channels.
"""

import torch

from ..model.decisions import as_action
from ..model.gate import NO_EXPLORATION
from ..model.gate_merge import MergeGate
from ..model.gate_tome import TomeGate
from ..model.matching import Matching, match
from ..model.rows import directions
from .tokens import take


class Half(Matching):
    """A `Matching` that leaves what is said of those that may leave as it is: (B, A)."""

    def spread(self, values, among):
        return values


def word_places(num_tokens, first):
    """Int64 (N,): where in [kept, *what is said of those that may leave] the word for each token of a stream stands.

    It is the same for shorter streams. first: number of protected tokens, which come first.
    """
    patches = torch.arange(num_tokens) - first
    return torch.where((patches > 0) & (patches % 2 == 1), (patches + 1) // 2, 0)


def leave(gate, normed, tokens, words, parting):
    """The `Tokens` that a gate keeps, with what the others have left them, and what the search for partners took.

    Args:
        gate: one that drops. normed: (B, N, D) after the norm. words: `word_places` of the longest stream.
        parting: the `Parting` of the layer.

    Returns:
        `Tokens`, and multiply-accumulates (B,) or 0 that the gate's own `macs` does not count.
    """
    state, first, halves = tokens.state(), gate.protected.stop, isinstance(gate, (MergeGate, TomeGate))
    if halves:
        found = match(normed, state, gate.protected)
        stays = _stays(gate, normed, state, found)  # (B, A)
        said = torch.cat((stays.new_ones(stays.shape[0], 1), stays), 1)
        keep = said.index_select(1, words[: normed.shape[1]])
    else:
        action = as_action(gate(normed, "threshold", state=state))
        keep = action.keep
        tokens = tokens if action.halting is None else tokens._replace(halting=action.halting)
    if isinstance(normed.shape[1], int) and parting.fixed == normed.shape[1]:
        return tokens, 0
    keep = keep & (tokens.size > 0.5) if tokens.padded else keep
    count = keep.sum(1, dtype=torch.float32)
    kept, there = parting.kept(keep, count)
    left = _taken(tokens, kept, there)._replace(count=count)
    if not gate.merge:
        return left._replace(x=take(tokens.x, kept)), 0
    sums, searched = _sums(tokens), 0
    if halves:
        goes = ~stays if found.there is None else found.there & ~stays
        gone, into = sums[:, found.rows], found.partner
    else:
        places, goes = parting.gone(keep, count, first)
        gone = take(sums, places)
        if gate.pairs:
            into = action.into.gather(1, places)
        else:
            into = _nearest(normed, places, kept, there, first)
            searched = (tokens.count - count) * (count - first) * normed.shape[2]
    moves = (kept.unsqueeze(2) == torch.where(goes, into, -1).unsqueeze(1)).to(sums.dtype)  # (B, K, A)
    sums = take(sums, kept) + moves @ gone
    size = sums[..., -1]
    left = left._replace(x=sums[..., :-1] / (size.clamp_min(1.0) if tokens.padded else size).unsqueeze(-1))
    if gate.weighs:
        left = left._replace(size=size if there is None else size * there)
    return left, searched


def _taken(tokens, kept, there):
    """What is known of the tokens (B, K) that are kept, but for their content; there: bool (B, K), no padding, or None."""
    known = {name: take(getattr(tokens, name), kept) for name in ("size", "side", "attention", "values", "halting")}
    if there is not None:
        known["size"] = there.float() if known["size"] is None else known["size"] * there
        for name in ("attention", "values"):  # of an image of which nothing is known all are 0
            known[name] = None if known[name] is None else known[name] * there
    return tokens._replace(padded=there is not None, **known)


def _sums(tokens):
    """(B, N, D + 1): of each token the sum over its patches, and how many they are."""
    if tokens.size is None:
        return torch.cat((tokens.x, torch.ones_like(tokens.x[..., :1])), 2)
    size = tokens.size.unsqueeze(2)
    return torch.cat((tokens.x * size, size), 2)


def _stays(gate, normed, state, found):
    """Bool (B, A): which of those that may leave stay."""
    if not isinstance(gate, TomeGate):
        return gate.decide(gate.logits(normed, state, Half(*found)), "threshold", NO_EXPLORATION)
    distance = found.distance if found.there is None else found.distance.masked_fill(~found.there, torch.inf)
    first = distance.argsort(1)[:, : gate.merged]
    return torch.ones_like(distance, dtype=torch.bool).scatter(1, first, False)


def _nearest(normed, gone, kept, there, first):
    """As `merging.nearest`: the patch among those `kept` (B, K) most like each of the tokens `gone` (B, A)."""
    likeness = take(normed, gone) @ directions(take(normed, kept)).transpose(1, 2)  # (B, A, K)
    no_patch = kept < first if there is None else (kept < first) | ~there
    return kept.gather(1, likeness.masked_fill(no_patch.unsqueeze(1), -torch.inf).argmax(2))
