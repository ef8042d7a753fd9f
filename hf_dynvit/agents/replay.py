"""The replay memory of Q-learning agents: few transitions, drawn and evicted at random."""

from typing import NamedTuple

import torch


class Transition(NamedTuple):
    """One rewarded batch of B images with n patches.

    Attributes:
        state, next_state: (B, n) before and after the ViT's step, of the same images.
        reward: scalar tensor.
        keep: bool (n,), what was kept, or None where an agent does not remember it.
    """

    state: torch.Tensor
    next_state: torch.Tensor
    reward: torch.Tensor
    keep: torch.Tensor | None = None


class Replay:
    """At most `capacity` transitions; when full, a random one makes room.

    Args:
        capacity, sample_size: both at least 1, sample_size <= capacity.
        generator: `torch.Generator` on CPU.
    """

    def __init__(self, capacity, sample_size, generator):
        if not 1 <= sample_size <= capacity:
            raise ValueError(f"replay needs 1 <= sample <= capacity, got {sample_size} and {capacity}")
        self.capacity, self.sample_size, self.generator = capacity, sample_size, generator
        self.transitions = []

    def __len__(self):
        return len(self.transitions)

    def push(self, transition):
        if len(self) == self.capacity:
            del self.transitions[int(torch.randint(self.capacity, (), generator=self.generator))]
        self.transitions.append(transition)

    def ready(self):
        return len(self) >= self.sample_size

    def sample(self):
        """`sample_size` different transitions as rows: state, next_state (R, n), reward (R,), keep (R, n) or None."""
        indices = torch.randperm(len(self), generator=self.generator)[: self.sample_size].tolist()
        drawn = [self.transitions[index] for index in indices]
        states, next_states = (torch.cat([getattr(t, name) for t in drawn]) for name in ("state", "next_state"))
        rewards = torch.cat([t.reward.expand(len(t.state)) for t in drawn])  # batches may differ in size
        if drawn[0].keep is None:
            return Transition(states, next_states, rewards)
        return Transition(states, next_states, rewards, torch.cat([t.keep.expand(len(t.state), -1) for t in drawn]))

    def state_dict(self):
        """The transitions as dicts of tensors."""
        return [
            {name: value for name, value in transition._asdict().items() if value is not None}
            for transition in self.transitions
        ]

    def load_state_dict(self, saved, device):
        self.transitions = [Transition(**{name: v.to(device) for name, v in entry.items()}) for entry in saved]
