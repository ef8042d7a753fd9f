"""A stream without the tokens that are gone: after a drop for good, later layers need not step over them.

Only where nothing asks for those tokens any more: packed, without gradients, for a classifier that reads [CLS].
Letters: B images, N tokens of the full stream, K of the compacted one, D channels.
"""

import torch


WORTH = 0.95  # a copy of the stream does not pay for less than this much fewer tokens


def compact(x, state, num_tokens):
    """Take the dropped tokens out; with several images up to the number that the fullest of them keeps.

    Args:
        x: (B, K', D). state: a `TokenState` with `alive` (B, K').
        num_tokens: N.

    Returns:
        x (B, K, D) and the state in its places; [CLS] stays first and the order of tokens as it was.
    """
    if not len(x):
        return x, state
    alive = state.alive > 0.5
    counts = alive.sum(1)
    longest = int(counts.max())
    if longest > WORTH * x.shape[1]:
        if state.places is None:
            return x, state
        return x, state._replace(shown=torch.zeros_like(state.shown).scatter(1, state.places, alive))
    if len(x) == 1:
        index = alive[0].nonzero().T  # (1, K)
        left = None
    else:
        index = alive.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
        left = torch.arange(longest, device=x.device) < counts.unsqueeze(1)
    x = x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    places = index if state.places is None else state.places.gather(1, index)
    shown = torch.zeros(len(x), num_tokens, dtype=torch.bool, device=x.device)
    shown.scatter_(1, places, torch.ones_like(places, dtype=torch.bool) if left is None else left)
    size = None if state.size is None else state.size.gather(1, index)
    return x, state._replace(alive=left, size=size, places=places, shown=shown)


def in_full(decision, state, num_tokens):
    """`LayerDecisions` made in a compacted stream, in the places of the full one; `state` is the one before the layer."""
    if state.places is None:
        return decision

    def spread(keep):
        if keep is None or keep is state.alive:
            return state.shown
        return torch.zeros_like(state.shown).scatter(1, state.places, keep > 0.5)

    into = decision.into
    if into is not None:
        itself = torch.arange(num_tokens, device=into.device).expand(len(into), -1)
        into = itself.scatter(1, state.places, state.places.gather(1, into))
    tokens = {"attention_tokens": spread(decision.attention_tokens), "mlp_tokens": spread(decision.mlp_tokens)}
    return decision._replace(**tokens, into=into)
