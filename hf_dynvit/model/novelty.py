"""How new a token is: what it does not share with any patch token before it in the image's order.

A patch that looks like an earlier one can leave and lose little, the more so if the earlier one takes on its content.
That likeness is what ToMe (Bolya et al., 2023, section 3) merges by; here it is an input of a gate, which says how much
it counts beside what the gate learns, and how new is new enough.
"""

import torch

from .host import CLS
from .rows import directions, no_autocast


def novelty(tokens, alive=None, protected=CLS):
    """1 - the largest cosine between each token and those before it; no gradient.

    Args:
        tokens: (B, N, D).
        alive: (B, N) tokens that are still there; None: all. Nothing is compared with what is gone.
        protected: indices of tokens that nothing is compared with, [CLS].

    Returns:
        (B, N) in [0, 2]; 2 where there is nothing to compare with. It depends on the tokens that are alive and on
        their order alone, so that it is the same in a stream without the others.
    """
    num_tokens = tokens.shape[1]
    unit = directions(tokens)
    earlier = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=tokens.device).tril(-1)
    earlier[:, protected] = False
    if alive is not None:
        earlier = earlier & (alive > 0.5).unsqueeze(1)  # (B, N, N)
    with no_autocast(tokens):
        likeness = unit @ unit.transpose(1, 2)
    return (1 - likeness.masked_fill(~earlier, -1.0).amax(-1)).float()


def novelty_macs(alive, width):
    """Multiply-accumulates of one image with `alive` tokens of `width` channels."""
    return alive * alive * width
