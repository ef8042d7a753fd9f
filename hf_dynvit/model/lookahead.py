"""Gates that decide up front: what they read, and, in the packed layout, the decisions of all of them taken together.

A layer that packs must know on the host which images run it. Asked layer by layer, the host waits for a GPU each time;
what is decided up front crosses to it once. Letters: B images, N tokens, D channels, K gates.
"""

from typing import NamedTuple

import torch

from .gate import Action


class Ahead(NamedTuple):
    """What a gate has decided before its layer's turn: its `Action`, and the images (B',) that run the layer."""

    action: Action
    images: torch.Tensor


def read_entry(state, gates, x):
    """The state, with what up-front gates read of x (B, N, D), if this is the first layer that has one."""
    upfront = [gate for gate in gates.values() if gate.upfront]
    if not upfront or state.entry is not None:
        return state
    return state._replace(entry=upfront[0].pool(x).unsqueeze(1))


def decide_ahead(state, gates, gating, exploration):
    """The state with the decisions of `gates`, K block gates, as each would take them in its layer's turn.

    Args:
        state: a `TokenState` with `entry`.
        gating: `"threshold"` or `"act"`, which draws in the order of the layers.
    """
    if not gates:
        return state._replace(ahead={})
    if gating == "act":
        actions = [gate.act(state.entry, exploration=exploration) for gate in gates]
    else:
        actions = [Action(gate(state.entry, gating)) for gate in gates]
    keeps = torch.stack([action.keep[:, 0] for action in actions])  # (K, B)
    counts = to_host(keeps.sum(1))
    # Where the counts are known, the images need no crossing: the kept ones first, in their order.
    order = keeps.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    plan = zip(gates, actions, order, counts, strict=True)
    return state._replace(ahead={gate: Ahead(action, images[:count]) for gate, action, images, count in plan})


def to_host(counts):
    """The one place where a plan waits for the device: (K,) -> list."""
    return counts.tolist()
