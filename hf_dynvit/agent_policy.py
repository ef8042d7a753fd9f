"""AgentViT plus, ours: a policy that gives each image exactly K patches, and learns which ones helped it.

It differs from the published agent in every part: it chooses per image, from tokens that the ViT has anyway; the
number of patches is exact and follows a schedule that ends with all of them; the reward is bounded (the probability
of the label); credit goes to the patches that were kept. Every `learn_every` batches a second choice is drawn and
run without gradient; the difference of the two rewards says which choice was better for that image, so that hard
images do not look like bad choices.

Letters: B images, n patches, D channels, K kept patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from .agent_base import Agent, build_seeded, load_optimizer_tensors, optimizer_tensors
from .agent_math import draw_order, kept_count, order_log_prob, pair_loss
from .agent_signal import input_tokens
from .reinforce import outcome


class PatchScorer(nn.Module):
    """Patch tokens (B, n, D) -> logits (B, n), each from its own token; fresh, all are 0 and choices uniform."""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.score = nn.Linear(hidden or width, 1, bias=False)  # a common shift changes no choice
        nn.init.zeros_(self.score.weight)
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()

    def forward(self, tokens):
        return self.score(self.body(self.norm(tokens))).squeeze(-1)


class SubsetPolicy(Agent):
    """Draws K patches per image without replacement and is taught by pairs of choices."""

    @dataclass
    class Options:
        """`return_fraction`: last part of training over which K rises to all patches; `learn_every` batches a second
        choice is tried; `learning_rate` of Adam; `hidden` width of the scorer, 0: linear; `entropy_weight` keeps
        choices varied.
        """

        return_fraction: float = 0.2
        learn_every: int = 5
        learning_rate: float = 1e-3
        hidden: int = 64
        entropy_weight: float = 0.01

    def __init__(self, model, desired, options, device, seed):
        super().__init__(model, desired, options, device, seed)
        if not options.learn_every:
            raise ValueError("learn_every of an agent must be at least 1")
        width = model.config.hidden_size
        self.scorer = build_seeded(seed, lambda: PatchScorer(width, options.hidden)).to(device)
        self.optimizer = torch.optim.Adam(self.scorer.parameters(), lr=options.learning_rate)
        self._chosen = None

    def choose(self, pixel_values, moment, explore=True):
        progress = moment.progress if explore else 0.0
        count = kept_count(progress, self.desired, self.patches, self.options.return_fraction)
        if count == self.patches:
            self._chosen = None if explore else self._chosen
            return None
        tokens = input_tokens(self.model.vit, pixel_values)[:, 1:]
        with torch.no_grad():
            logits = self._logits(tokens)
        order = draw_order(logits, count, self.generator if explore else None)
        if explore:
            self._chosen = tokens, order
        return order.sort(1).values

    def _logits(self, tokens):
        with torch.autocast(tokens.device.type, enabled=False):
            return self.scorer(tokens.float())

    def observe(self, pixel_values, labels, outputs, moment):
        if self._chosen is None or moment.batch % self.options.learn_every:
            return
        tokens, order = self._chosen
        logits = self._logits(tokens)
        other = draw_order(logits.detach(), order.shape[1], self.generator)
        with torch.no_grad():
            others = self.model(pixel_values, patches=other.sort(1).values)
        reward, baseline = (outcome(out.logits, labels, "probability") for out in (outputs, others))
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean() / math.log(self.patches)
        loss = pair_loss(order_log_prob(logits, order), order_log_prob(logits, other), reward, baseline)
        self.optimizer.zero_grad()
        (loss - self.options.entropy_weight * entropy).backward()
        self.optimizer.step()
        self.log(reward=0.5 * (reward + baseline).mean(), entropy=entropy.detach())

    def state_dict(self):
        return super().state_dict() | {
            "scorer": self.scorer.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }

    def load_state_dict(self, saved):
        super().load_state_dict(saved)
        self.scorer.load_state_dict(saved["scorer"])
        load_optimizer_tensors(self.optimizer, saved["optimizer"])
