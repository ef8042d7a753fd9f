"""The merging gate: ToMe's bipartite matching in every layer, with a threshold per token in place of a number for all.

Letters: B images, N tokens, D channels, A and P tokens of the two sides of the matching.
"""

import torch
from torch.nn import functional as F

from .gate_patch import PatchGate
from .host import CLS


KEPT = 1e4  # logit of a token that may not leave, beyond any shift of the thresholds


class MergeGate(PatchGate):
    """Every second patch token may leave for its most similar partner among the others (ToMe, Bolya et al., 2023, 3.1).

    ToMe merges the r most similar pairs of each layer, the same r for every image. Here a pair merges where
    `score(token) + novelty * (1 - similarity)` falls below the threshold: how many do so is the image's doing, and the
    score, at 0 until it learns, says which tokens must not leave however similar they are. Similarity is the cosine of
    normed tokens, where ToMe takes the mean of the keys over heads; a token merges into the most similar of all kept
    tokens (tokens.py).

    Args:
        novelty: what the distance to the partner counts in the logit at first; learned from there.
    """

    def __init__(self, config, novelty=16.0, **options):
        super().__init__(config, on="block", drop=True, merge=True, novelty=novelty, **options)
        if self.novelty is None:
            raise ValueError("novelty of a merge gate must be above 0: it merges by similarity, got 0")

    def logits(self, tokens, alive=None):
        distance, leaving = partner_distance(tokens, alive, self.protected)
        logits = self.score(tokens).squeeze(-1).float() + self.novelty.weight.float().squeeze() * distance
        return torch.where(leaving, logits, KEPT)  # (B, N)

    def decidable(self, tokens, alive):
        return sides(tokens, alive, self.protected)[0]

    def macs(self, num_tokens, alive=None):
        scored = num_tokens * self.score.in_features
        patches = (num_tokens if alive is None else alive) - _count(self.protected, num_tokens)
        return scored + (patches // 2) * (patches - patches // 2) * self.score.in_features


def sides(tokens, alive=None, protected=CLS):
    """Bool (B, N) each: the tokens that may leave and their possible partners, every second patch that is alive.

    They depend on the order of the tokens that are alive alone: the same in a stream without the others.
    """
    there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if alive is None else alive > 0.5
    there = there.clone()
    there[:, protected] = False
    second = there.cumsum(1) % 2 == 0
    return there & second, there & ~second


def partner_distance(tokens, alive=None, protected=CLS):
    """1 - the largest cosine between each token that may leave and its possible partners; no gradient.

    Args:
        tokens: (B, N, D). alive: (B, N) tokens that are still there; None: all. protected: indices that take no part.

    Returns:
        (B, N) in [0, 2], 0 for tokens that may not leave; bool (B, N), the tokens that may.
    """
    leaving, partners = sides(tokens, alive, protected)
    most = tokens.shape[1] - _count(protected, tokens.shape[1])
    if most < 2:  # a compacted stream may have protected tokens alone
        return torch.zeros(tokens.shape[:2], device=tokens.device), leaving
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        # Not in 16 bit on CPU, which compiles a product for each number of tokens that is left.
        unit = F.normalize(tokens.detach().float() if tokens.device.type == "cpu" else tokens.detach(), dim=-1)
        one, one_there = _first(unit, leaving, most // 2)  # (B, A, D)
        other, other_there = _first(unit, partners, most - most // 2)  # (B, P, D)
        similarity = (one @ other.transpose(1, 2)).masked_fill(~other_there[1].unsqueeze(1), -1.0)
        found = (1 - similarity.amax(-1)).float().masked_fill(~one_there[1], 0.0)
        distance = torch.zeros(tokens.shape[:2], device=tokens.device).scatter_add_(1, one_there[0], found)
    return distance, leaving


def _count(protected, num_tokens):
    """How many tokens an index, a slice or a list of places, protects."""
    return torch.empty(num_tokens)[protected].numel()


def _first(unit, chosen, most):
    """The chosen rows first, in their order, up to `most`: (B, most, D), and their places and which of them are chosen."""
    places = chosen.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    rows = unit.gather(1, places.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    return rows, (places, chosen.gather(1, places))
