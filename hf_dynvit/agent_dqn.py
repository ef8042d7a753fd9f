"""The deep Q-learning that AgentViT is named after: it remembers what was kept and gives credit to that alone.

Ours; all but the learning rule is the published agent's.

Letters: n patches, R rows drawn from the replay memory.
"""

import torch
from torch.nn import functional as F

from .agent_math import q_target
from .agent_published import AgentViTAgent


class DQNAgent(AgentViTAgent):
    """Q-learning by the book, one Q value for each patch and action: (R, n, 2), drop and keep.

    Each patch is a branch of its own (factored actions): a patch is kept where keeping has the higher batch mean, the
    target takes the better action of the next state, and only the actions taken learn.
    """

    outputs_per_patch = 2
    remembers_actions = True

    def _q(self, network, state):
        return super()._q(network, state).unflatten(1, (-1, 2))

    def _greedy(self, state):
        with torch.no_grad():
            drop, keep = self._q(self.network, state).mean(0).unbind(-1)  # (n,) each
        gain = keep - drop
        return gain >= gain.max().clamp(max=0.0)  # the ViT runs on one patch at least

    def learning_loss(self, batch):
        wanted = q_target(batch.reward, self._q(self.target, batch.next_state).amax(-1), self.options.gamma)
        taken = self._q(self.network, batch.state).gather(-1, batch.keep.long().unsqueeze(-1)).squeeze(-1)
        return F.smooth_l1_loss(taken, wanted)
