"""The bipartite matching of ToMe: of every second patch token the most similar one of the other half.

Bolya et al., 2023, section 3.1, with the cosine of tokens in place of that of keys. A token of the half that may leave
always finds its partner there: no token of the other half leaves in the same layer.

Letters: B images, N tokens, D channels, M patch tokens, A of them that may leave, P that may be their partners.
"""

from typing import NamedTuple

import torch

from .decisions import UNTOUCHED
from .host import CLS
from .kernels import kernels
from .rows import directions, no_autocast


class Matching(NamedTuple):
    """The tokens that may leave, and what they would leave for."""

    rows: slice | torch.Tensor  # their places among the N, of all images alike, or int64 (B, A)
    partner: torch.Tensor  # int64 (B, A), places
    distance: torch.Tensor  # (B, A) in [0, 2], 1 - cosine; no gradient
    there: torch.Tensor | None  # bool (B, A), which of them there are; None: all

    def of(self, values):
        """values (B, N) -> (B, A)."""
        return values[:, self.rows] if isinstance(self.rows, slice) else values.gather(1, self.rows)

    def spread(self, values, among):
        """Write values (B, A), or one number, of the tokens that may leave into `among` (B, N)."""
        if self.there is not None:
            values = torch.where(self.there, values, self.of(among))
        if isinstance(self.rows, slice):
            among[:, self.rows] = values
            return among
        return among.scatter_(1, self.rows, values)

    def into(self, num_tokens):
        """int64 (B, N): the partner of each token that may leave, and the others themselves."""
        itself = torch.arange(num_tokens, device=self.partner.device).repeat(self.partner.shape[0], 1)
        return self.spread(self.partner, itself)

    def leaving(self, num_tokens):
        """Bool (B, N): the tokens that may leave."""
        nobody = torch.zeros(self.partner.shape[0], num_tokens, dtype=torch.bool, device=self.partner.device)
        return self.spread(torch.ones_like(self.partner, dtype=torch.bool), nobody)


def match(tokens, state=UNTOUCHED, protected=CLS):
    """The `Matching` of tokens (B, N, D): the second, fourth, ... patch that is alive may leave.

    It depends on the order of the tokens that are alive alone: it is the same in a stream without the others.

    Args:
        state: their `TokenState`. protected: indices of tokens that take no part.
    """
    num_tokens = tokens.shape[1]
    alive = None if state.alive is None else state.alive > 0.5
    if alive_come_first(state, protected):
        first = protected.stop
        if (fast := kernels(tokens)) is not None:
            distance, partner = fast.match(tokens, alive, first)
            return Matching(
                slice(first + 1, num_tokens, 2), partner, distance, None if alive is None else alive[:, first + 1 :: 2]
            )
        order, patches, there = None, tokens[:, first:], None if alive is None else alive[:, first:]
    else:
        order, there = _patches_first(tokens, alive, protected)
        rows = order + num_tokens * torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1)
        patches = (
            tokens.detach().flatten(0, 1).index_select(0, rows.flatten()).view(*order.shape, tokens.shape[2])
        )  # (B, M, D)
    distance, partner = _nearest(patches, there)
    there = None if there is None else there[:, 1::2]
    if order is None:
        return Matching(slice(first + 1, num_tokens, 2), partner.mul_(2).add_(first), distance, there)
    return Matching(order[:, 1::2], order[:, ::2].gather(1, partner), distance, there)


def alive_come_first(state, protected):
    """Whether protected tokens are the first of a stream, and those that are not alive, if any, the last."""
    return isinstance(protected, slice) and (state.alive is None or state.places is not None)


def _patches_first(tokens, alive, protected):
    """The places of all tokens that are alive and not protected, then others: (B, M), and which of them these are."""
    there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if alive is None else alive.clone()
    there[:, protected] = False
    there, order = there.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    most = tokens.shape[1] - count(protected, tokens.shape[1])
    return order[:, :most], there[:, :most] > 0


def _nearest(patches, there):
    """1 - cosine of each second patch and the one of the others most like it, and which it is: (B, A) each."""
    if patches.shape[1] < 2:  # a compacted stream may have protected tokens alone
        nobody = torch.zeros(patches.shape[0], 0, device=patches.device)
        return nobody, nobody.long()
    unit = directions(patches)
    with no_autocast(patches):
        similarity = torch.bmm(unit[:, 1::2], unit[:, ::2].transpose(1, 2))  # (B, A, P)
    if there is not None:
        similarity.masked_fill_(~there[:, None, ::2], -1.0)
    most, partner = similarity.max(-1)
    return (1 - most).float(), partner


def count(protected, num_tokens):
    """How many tokens `protected`, a slice or a list of places, holds."""
    return len(range(num_tokens)[protected]) if isinstance(protected, slice) else len(protected)


def matching_macs(patches, width):
    """Multiply-accumulates of one image with `patches` alive (a number, or float tensor) of `width` channels."""
    return patches * patches // 4 * width
