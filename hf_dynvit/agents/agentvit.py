"""`agentvit`, the agent as published (Traini, 2024; 2025, doi 10.1007/s10489-025-06516-z).

It does what the public notebook does, defects included: no action is remembered, so all outputs learn one and the same
target; the mean of the outputs as threshold keeps about half of the patches, whatever the target.

Letters: B images, n patches, R rows drawn from the replay memory.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from ..objectives.options import at_least_one
from .base import Agent, build_seeded, linear_macs
from .features import attention_signal, attention_signal_macs
from .q_learning import (
    Replay,
    Transition,
    above_mean,
    agentvit_reward,
    epsilon_at,
    learning_steps,
    mean_epsilon,
    polyak,
    q_target,
)


logger = logging.get_logger(__name__)


class QNetwork(nn.Sequential):
    """State (R, n) -> Q values (R, outputs) through two hidden layers."""

    def __init__(self, patches, outputs, hidden=1024, hidden2=256):
        widths = nn.Linear(patches, hidden), nn.Linear(hidden, hidden2), nn.Linear(hidden2, outputs)
        super().__init__(widths[0], nn.ReLU(), widths[1], nn.ReLU(), widths[2])


class AgentViTAgent(Agent):
    """One choice per batch by the batch mean of Q; learns on every 50th batch of an epoch, from the second epoch on."""

    @dataclass
    class Options:
        """Defaults: the published notebook.

        `learning_rate` of AdamW (amsgrad); `clip` of gradient values; `gamma` discount; `capacity` and `sample` of
        the replay memory, in batches; `learn_every` batches of an epoch a reward and a learning step;
        `silent_epochs` at the start whose rewards are thrown away; `tau` and `target_every` learning steps: Polyak
        updates of the target network; `epsilon_start`, `epsilon_end`, `epsilon_decay`: random choices, over batches;
        `loss_weight`, `time_weight` of the reward; `hidden`, `hidden2` widths of the Q-network.
        """

        learning_rate: float = 0.01
        clip: float = 100.0
        gamma: float = 0.95
        capacity: int = 64
        sample: int = 8
        learn_every: int = at_least_one(50)
        silent_epochs: int = 1
        tau: float = 0.1
        target_every: int = at_least_one(2)
        epsilon_start: float = 1.0
        epsilon_end: float = 0.01
        epsilon_decay: float = at_least_one(20000.0)
        loss_weight: float = 1.0
        time_weight: float = 20.0
        hidden: int = 1024
        hidden2: int = 256

    layers_needed = 2
    networks = ("network", "target")
    outputs_per_patch = 1
    remembers_actions = False

    def __init__(self, model, desired, options, device, seed):
        super().__init__(model, desired, options, device, seed)
        sizes = self.patches, self.patches * self.outputs_per_patch, options.hidden, options.hidden2
        self.network = build_seeded(seed, lambda: QNetwork(*sizes)).to(device)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=options.learning_rate, amsgrad=True)
        self.replay = Replay(options.capacity, options.sample, self.generator)
        self.epsilon = options.epsilon_start, options.epsilon_end, options.epsilon_decay
        self.learn_steps, self.first_loss = 0, None
        self._chosen, self._pending = None, []

    def choose(self, pixel_values, moment, explore=True):
        epsilon = epsilon_at(moment.batch, *self.epsilon)
        at_random = explore and torch.rand((), generator=self.generator).item() < epsilon
        # A random choice needs no state, unless it will be learned from.
        state = None if at_random and not self._learns_at(moment) else self.state(pixel_values)
        keep = self._random() if at_random else self._greedy(state)
        if explore:
            self._chosen = (state, keep)
            self.log(epsilon=torch.tensor(epsilon))
        return keep.nonzero().squeeze(1).to(self.device)

    def state(self, pixel_values):
        """What the Q-network reads: (B, n)."""
        return attention_signal(self.model.vit, pixel_values)

    def _random(self):
        return above_mean(torch.rand(self.patches, generator=self.generator)).to(self.device)

    @torch.no_grad()
    def _greedy(self, state):
        return above_mean(self._q(self.network, state).mean(0))

    def _q(self, network, state):
        with torch.autocast(state.device.type, enabled=False):  # small, and its targets grow with the rewards
            return network(state)

    def _rewarded_at(self, moment):
        return moment.batch_in_epoch % self.options.learn_every == 0

    def _learns_at(self, moment):
        return self._rewarded_at(moment) and moment.epoch >= self.options.silent_epochs

    def observe(self, pixel_values, labels, outputs, moment):
        if not self._rewarded_at(moment):
            return
        loss, options = outputs.loss.detach().item(), self.options
        if self.first_loss is None:
            self.first_loss = loss
        state, keep = self._chosen
        patches = self.patches - int(keep.sum()), self.patches, self.desired
        reward = agentvit_reward(self.first_loss, loss, *patches, options.loss_weight, options.time_weight)
        reward = torch.tensor(reward, dtype=torch.float32, device=self.device)
        self.log(reward=reward)
        if self._learns_at(moment):
            self._pending.append((pixel_values, state, keep, reward))

    def after_step(self):
        pending, self._pending = self._pending, []
        for pixel_values, state, keep, reward in pending:
            memory = keep if self.remembers_actions else None
            self.replay.push(Transition(state, self.state(pixel_values), reward, memory))
            if self.replay.ready():
                self._learn(self.replay.sample())

    def _learn(self, batch):
        with torch.enable_grad():
            loss = self.learning_loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_value_(self.network.parameters(), self.options.clip)
        self.optimizer.step()
        self.learn_steps += 1
        if self.learn_steps % self.options.target_every == 0:
            polyak(self.target, self.network, self.options.tau)
        self.log(q_loss=loss.detach())

    def learning_loss(self, batch):
        """SmoothL1 of all outputs against reward + gamma * target network: one reward for every patch, kept or not."""
        wanted = q_target(batch.reward, self._q(self.target, batch.next_state), self.options.gamma)
        return F.smooth_l1_loss(self._q(self.network, batch.state), wanted)

    def begin(self, batches, per_epoch):
        options = self.options
        if not learning_steps(batches, per_epoch, options.learn_every, options.silent_epochs, options.sample):
            logger.warning(
                f"the agent will learn nothing in {batches} batches, {per_epoch} an epoch: it is rewarded on every "
                f"{options.learn_every}th batch of an epoch (learn_every), from epoch {options.silent_epochs + 1} on "
                f"(silent_epochs), and learns from its {options.sample}th reward on (sample). Lower these options, "
                "or train longer"
            )

    def report(self, batches):
        """`epsilon`: mean probability of a random choice so far; `learn_steps` of the Q-network."""
        return {"epsilon": mean_epsilon(batches, *self.epsilon), "learn_steps": self.learn_steps}

    def choice_macs(self):
        return attention_signal_macs(self.model.config, self.patches) + linear_macs(self.network)

    def state_dict(self):
        first = torch.tensor([] if self.first_loss is None else [self.first_loss], dtype=torch.float64)
        counters = {"learn_steps": torch.tensor(self.learn_steps), "first_loss": first}
        return super().state_dict() | counters | {"replay": self.replay.state_dict()}

    def load_state_dict(self, saved):
        super().load_state_dict(saved)
        self.replay.load_state_dict(saved["replay"], self.device)
        self.learn_steps = int(saved["learn_steps"])
        self.first_loss = saved["first_loss"].item() if len(saved["first_loss"]) else None
