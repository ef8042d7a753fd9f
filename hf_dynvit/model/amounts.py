"""How many tokens stay, of those that a score puts in order: as many for every image, or as its scores say.

Each takes scores (B, N), which of the tokens there are, bool (B, N), and a number, and says which of these stay: bool
(B, N). It depends on the scores and the order of those that are there alone.

Letters: B images, N tokens.
"""

import math

import torch


SLACK = 1e-4  # of a token: what 32 bits add to a number of tokens is none


def keep(scores, there, rate):
    """The best ceil(rate * n) of n (EViT, Liang et al., 2022; DynamicViT, Rao et al., 2021)."""
    count = (there.sum(1, keepdim=True, dtype=torch.float32) * rate - SLACK).ceil()
    return (ranks(scores, there) < count) & there


def top(scores, there, count):
    """The best `count`, or all where there are fewer."""
    return (ranks(scores, there) < count) & there


def mass(scores, there, share):
    """The fewest whose scores sum to this share of the sum of all; scores below 0 count as 0."""
    scores = _positive(scores, there)
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    stays = before < share * ordered.sum(1, keepdim=True)
    return torch.zeros_like(there).scatter(1, order, stays) & there


def samples(scores, there, points):
    """Those hit by so many regular points of the inverse distribution of scores (ATS, Fayyaz et al., 2022, section 3.2).

    Tokens lie on [0, 1] in the order of their scores, each as long as its share of the sum; the points are
    (2 i - 1) / (2 `points`). A token that is hit often stays once, so that fewer stay the more unequal the scores are.
    """
    ordered, order = _positive(scores, there).sort(dim=1, stable=True)
    total = ordered.sum(1, keepdim=True)
    ends = (ordered.cumsum(1) / total * points + 0.5).floor()
    hit = ends.diff(dim=1, prepend=ends.new_zeros(ends.shape[0], 1)) > 0
    return torch.zeros_like(there).scatter(1, order, hit) & there


def kept_of(amount, number, count):
    """How many of `count` tokens stay by `keep` or `top` with that number."""
    return min(count, number) if amount == "top" else math.ceil(count * number - SLACK)


AMOUNTS = {"keep": keep, "top": top, "mass": mass, "samples": samples}


def ranking(scores, there):
    """The places of the tokens (B, N), best first, those that are not there last; equal ones in their order."""
    return scores.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)


def ranks(scores, there):
    """The place of each token in the order: (B, N)."""
    order = ranking(scores, there)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter_(1, order, places)


def share_before(scores, there):
    """The share of the tokens that are there (B, N) before each in the order of scores, and half of itself: in (0, 1)."""
    count = there.sum(1, keepdim=True).clamp(min=1)
    return torch.minimum(ranks(scores, there) + 0.5, count - 0.5) / count


def _positive(scores, there):
    return scores.clamp(min=0).masked_fill(~there, 0.0)
