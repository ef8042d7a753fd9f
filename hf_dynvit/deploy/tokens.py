"""What a graph knows of the tokens of its images, and how some of them are taken.

Of several images each has as many places as the fullest of them needs: where one has fewer tokens, the last are padding, which
has a size of 0 and is seen by none.

Letters: B images, N tokens, K of them, D channels, H heads, S numbers per token.
"""

from typing import NamedTuple

import torch

from ..model.decisions import Places, TokenState


AT_THE_END = Places(None, None)  # padding comes last, as in a compacted stream


class Tokens(NamedTuple):
    """The streams of B images."""

    x: torch.Tensor  # (B, N, D)
    count: torch.Tensor  # (B,) tokens without padding, as floats
    padded: bool = False  # whether there may be padding
    size: torch.Tensor | None = None  # (B, N) patches that a token stands for, 0: it is padding; None: one each
    side: torch.Tensor | None = None  # (B, N, S)
    attention: torch.Tensor | None = None  # (B, N), this and the next two as in a `TokenState`
    values: torch.Tensor | None = None
    halting: torch.Tensor | None = None
    heads: torch.Tensor | None = None  # (B, H) that are on in the layer at hand; None: all

    def state(self):
        """The `TokenState` that gates of tokens are told."""
        known = TokenState(attention=self.attention, values=self.values, halting=self.halting)
        return known._replace(alive=self.size, places=AT_THE_END) if self.padded else known

    def of(self, images):
        """Those of the images (B',) alone."""
        tensors = {name: value for name, value in self._asdict().items() if torch.is_tensor(value)}
        return self._replace(**{name: value.index_select(0, images) for name, value in tensors.items()})

    def ready_to_note(self, notes):
        """With a place for what an attention notes, some of `NOTES`, should it not run: 0 where nothing is known."""
        empty = {name: torch.zeros_like(self.x[..., 0]) for name in notes if getattr(self, name) is None}
        return self._replace(**empty)


def take(values, places):
    """values (B, N, ...) at the places (B, K) of each image: (B, K, ...); None: None."""
    if values is None:
        return None
    batch, num_tokens = values.shape[:2]
    if isinstance(batch, int) and batch == 1:
        return values[0].index_select(0, places[0]).unsqueeze(0)
    rows = places + num_tokens * torch.arange(batch, device=places.device).unsqueeze(1)
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, -1))
