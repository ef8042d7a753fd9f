"""`agentvit-dqn`, ours: the deep Q-learning that AgentViT is named after, with credit for the actions taken alone.

All but the learning rule is the published agent's.

Letters: n patches, R rows drawn from the replay memory.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .agentvit import AgentViTAgent
from .q_learning import q_target


class DQNAgent(AgentViTAgent):
    """Q-learning by the book, one Q value for each patch and action: (R, n, 2), drop and keep.

    The value of a choice is the sum of the Q values of its actions (value decomposition, Sunehag et al., 2018): what the
    other patches did is explained by their own values, instead of being noise in those of each patch. So the best choice
    takes the better action of each patch, by the batch mean, and only the actions taken learn.
    """

    @dataclass
    class Options(AgentViTAgent.Options):
        """Those of the published agent; `gamma` is 0: what is kept has no part in which images come next, and the next
        state is that of the same images. The discounted values of the target network would add their errors alone.
        """

        gamma: float = 0.0

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
        """SmoothL1 of the value of what was kept against reward + gamma * value of the best next choice."""
        best = self._q(self.target, batch.next_state).amax(-1).sum(1, keepdim=True)  # (R, 1)
        taken = self._q(self.network, batch.state).gather(-1, batch.keep.long().unsqueeze(-1)).squeeze(-1)  # (R, n)
        return F.smooth_l1_loss(taken.sum(1, keepdim=True), q_target(batch.reward, best, self.options.gamma))
