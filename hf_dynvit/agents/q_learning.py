"""Q-learning of patch agents: schedules, rewards and targets as pure functions, and the replay memory.

Letters: B images, n patches (no [CLS]), R rows drawn from the memory.
"""

import math
from typing import NamedTuple

import torch


LEAST_LOSS = torch.finfo(torch.float32).tiny  # a confident prediction has a loss of 0


def epsilon_at(batch, start=1.0, end=0.01, decay=20000):
    """Probability of a random choice at batch number `batch`, counted from 0 over the whole training."""
    return end + (start - end) * math.exp(-batch / decay)


def mean_epsilon(batches, start=1.0, end=0.01, decay=20000):
    """Mean of `epsilon_at` over the first `batches` batches: the share of them whose choice is expected to be random."""
    ratio = math.exp(-1 / decay)
    share = 1.0 if ratio == 1.0 or not batches else (1 - ratio**batches) / (1 - ratio) / max(1, batches)
    return end + (start - end) * share


def learning_steps(batches, per_epoch, every, silent_epochs, sample):
    """How often an agent learns in `batches` batches, if every `every`-th batch of an epoch is rewarded.

    Args:
        per_epoch: batches of an epoch. silent_epochs: at the start, whose rewards are thrown away.
        sample: rewards in memory from which on it learns.
    """
    epochs, last = divmod(batches, per_epoch)
    rewards = max(0, epochs - silent_epochs) * (per_epoch // every) + (epochs >= silent_epochs) * (last // every)
    return max(0, rewards - sample + 1)


def patch_reward(dropped, patches, desired):
    """-|z - ideal| / ideal of z dropped patches, ideal = patches - desired; 0 at the target, negative elsewhere.

    A target of all patches leaves nothing to divide by: its ideal counts as 1.
    """
    ideal = patches - desired
    return -abs(dropped - ideal) / max(ideal, 1)


def agentvit_reward(first_loss, loss, dropped, patches, desired, loss_weight=1.0, time_weight=20.0):
    """AgentViT's reward of a batch: first loss / this loss, without bound but for a loss of 0, plus the weighted patch reward."""
    return loss_weight * first_loss / max(loss, LEAST_LOSS) + time_weight * patch_reward(dropped, patches, desired)


def above_mean(scores):
    """Bool (n,): the scores (n,) that reach their mean. Equal scores all do; there is always one that does."""
    scores = scores.double()  # so that the mean of equal numbers is that number
    return scores >= scores.mean()


def q_target(reward, next_q, gamma):
    """reward + gamma * next_q: rewards (R,), Q values of the target network (R, n)."""
    return reward.unsqueeze(1) + gamma * next_q


def polyak(target, source, tau):
    """Move the parameters of network `target` by `tau` of the way to those of `source`, in place."""
    with torch.no_grad():
        for moving, goal in zip(target.parameters(), source.parameters(), strict=True):
            moving.lerp_(goal, tau)


class Transition(NamedTuple):
    """One rewarded batch of B images with n patches."""

    state: torch.Tensor  # (B, n), before the ViT's step
    next_state: torch.Tensor  # (B, n), of the same images after it
    reward: torch.Tensor  # scalar
    keep: torch.Tensor | None = None  # bool (n,), what was kept, where an agent remembers it


class Replay:
    """At most `capacity` transitions, a random one of which makes room; all draws are from a generator on CPU."""

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
        return [{name: v for name, v in kept._asdict().items() if v is not None} for kept in self.transitions]

    def load_state_dict(self, saved, device):
        self.transitions = [Transition(**{name: v.to(device) for name, v in entry.items()}) for entry in saved]
