"""`agentvit-plus`, ours: a policy that gives each image exactly K patches, and learns which ones helped it.

It differs from the published agent in every part: it chooses per image, from tokens that the ViT has anyway; the
number of patches is exact and follows a schedule that rises to all of them; patches that look like an earlier one go
first, and what goes merges into what stays; credit goes to the patches that were kept. Every `learn_every` batches a
second choice is drawn and run without gradient; the difference of the two rewards says which choice was better for that
image, so that hard images do not look like bad choices. Instead the scorer may learn what the prediction depends on
(`credit="saliency"`), or nothing (`"none"`): then it is its own unlearned twin.

Letters: B images, n patches, K kept patches, S of them by their scores, F features.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..objectives.options import at_least_one, choice, share
from ..objectives.policy_gradient import are_soft, outcome
from ..objectives.saliency import log_saliency
from .base import Agent, build_seeded, linear_macs
from .features import feature_count, input_macs, input_tokens, patch_features, pixel_novelty_macs


class PatchScorer(nn.Module):
    """Features (B, n, F) -> logits (B, n), each from its own patch; fresh, choices are uniform but for the novelty.

    Args:
        hidden: width of the layer between, 0: linear.
        novelty: what the last feature, the patch's novelty, counts at first; 0: it is a feature like any other.
    """

    def __init__(self, features, hidden, novelty=0.0):
        super().__init__()
        self.score = nn.Linear(hidden or features, 1, bias=False)  # a common shift changes no choice
        nn.init.zeros_(self.score.weight)
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.GELU()) if hidden else nn.Identity()
        self.novelty = nn.Parameter(torch.tensor(float(novelty))) if novelty else None

    def forward(self, features):
        logits = self.score(self.body(features)).squeeze(-1)
        return logits if self.novelty is None else logits + self.novelty * features[..., -1]


class SubsetPolicy(Agent):
    """Draws K patches per image without replacement and is taught by pairs of choices, or by saliency."""

    @dataclass
    class Options:
        """`return_fraction`: last part of training over which K rises to all patches, 1: progressively from the
        start; `credit`: what the scorer learns from, "pairs" of choices, the "saliency" of patches, or "none"; every
        `learn_every` batches it learns; `learning_rate` of Adam; `hidden` width of the scorer, 0: linear; with pairs
        alone `entropy_weight` keeps choices varied, and `reward` is what a choice is worth: the label's probability,
        which is bounded, or with "loss" the negative cross-entropy; `statistics`, `position`: what the scorer reads
        besides the token (`patch_features`); `novelty`: what a patch's novelty counts in its score at first, 0: it is
        not read; `explore_share` of the K patches is drawn uniformly, so that all are trained; `merge`: patches that
        are left out leave their content to the kept ones most like them (`merge_patches`).
        """

        return_fraction: float = share(0.5)
        credit: str = choice("pairs", "saliency", "none")
        learn_every: int = at_least_one(20)
        learning_rate: float = 1e-3
        hidden: int = 64
        entropy_weight: float = 0.01
        reward: str = choice("probability", "loss")
        statistics: bool = False
        position: bool = False
        novelty: float = 4.0
        explore_share: float = share(0.0)
        merge: bool = True

        def __post_init__(self):
            given = {"reward": self.reward, "entropy_weight": self.entropy_weight}
            idle = [name for name, value in given.items() if value != getattr(type(self), name)]
            if self.credit != "pairs" and idle:
                raise ValueError(
                    f"{' and '.join(idle)} of agentvit-plus are of credit 'pairs', got credit {self.credit!r}"
                )

    networks = ("scorer",)

    def __init__(self, model, desired, options, device, seed):
        super().__init__(model, desired, options, device, seed)
        features = feature_count(model.config.hidden_size, options.statistics, options.position, options.novelty)
        self.scorer = build_seeded(seed, lambda: PatchScorer(features, options.hidden, options.novelty)).to(device)
        self.optimizer = torch.optim.Adam(self.scorer.parameters(), lr=options.learning_rate)
        self._chosen = None

    def choose(self, pixel_values, moment, explore=True):
        count = self.count(moment, explore)
        if count == self.patches:
            self._chosen = None if explore else self._chosen
            return None
        features = self.features(pixel_values)
        with torch.no_grad():
            logits = self.logits(features)
        scored = self._scored(count) if explore else count
        order = draw_with_rest(logits, count, scored, self.generator if explore else None)
        if explore:
            self._chosen = features, order
        return order.sort(1).values

    def features(self, pixel_values):
        """What the scorer reads: (B, n, F), without gradient."""
        tokens = input_tokens(self.model.vit, pixel_values)[:, 1:]
        wanted = self.options.statistics, self.options.position, bool(self.options.novelty)
        return patch_features(tokens, pixel_values, self.grid, *wanted)

    def logits(self, features):
        """Scores (B, n) of features (B, n, F)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scorer(features)

    def _scored(self, count):
        """S, one at least."""
        return max(1, round((1 - self.options.explore_share) * count))

    def observe(self, pixel_values, labels, outputs, moment):
        if self._chosen is None or self.options.credit == "none" or moment.batch % self.options.learn_every:
            return
        pairs = self.options.credit == "pairs"
        loss = self._loss_of_pairs(pixel_values, labels, outputs) if pairs else self._loss_of_saliency(pixel_values)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _loss_of_pairs(self, pixel_values, labels, outputs):
        """What the scorer learns from the choice that was run, and from another one that is run here."""
        features, order = self._chosen
        logits, count = self.logits(features), order.shape[1]
        scored = self._scored(count)
        other = draw_with_rest(logits.detach(), count, scored, self.generator)
        with torch.no_grad():
            others = self.model(pixel_values, patches=other.sort(1).values, merge_patches=self.merges)
        reward, baseline = (self._reward(out.logits, labels) for out in (outputs, others))
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean() / math.log(self.patches)
        # The uniform rest says nothing about the scores: only the first S are credited.
        log_probs = (order_log_prob(logits, drawn[:, :scored]) for drawn in (order, other))
        self.log(reward=0.5 * (reward + baseline).mean(), entropy=entropy.detach())
        return pair_loss(*log_probs, reward, baseline) - self.options.entropy_weight * entropy

    def _loss_of_saliency(self, pixel_values):
        """What the scorer learns from what the prediction depends on, all patches there; no labels are used."""
        logits, target = self.logits(self._chosen[0]), patch_saliency(self.model, pixel_values)
        loss = F.mse_loss(logits - logits.mean(1, keepdim=True), target)
        self.log(explained=1 - loss.detach() / target.square().mean().clamp(min=1e-9))
        return loss

    def _reward(self, logits, labels):
        """What a prediction is worth, (B,); the difference of two is what the loss falls by with reward "loss"."""
        problem = self.model.config.problem_type
        if self.options.reward == "loss" and labels.ndim == 2 and not are_soft(labels, problem):  # multi-label
            return -F.binary_cross_entropy_with_logits(logits.detach().float(), labels, reduction="none").mean(1)
        if self.options.reward == "loss":
            return -F.cross_entropy(logits.detach().float(), labels, reduction="none")
        return outcome(logits, labels, self.options.reward, problem)

    def choice_macs(self):
        macs = input_macs(self.model.config, self.patches) + self.patches * linear_macs(self.scorer)
        return macs + bool(self.options.novelty) * pixel_novelty_macs(self.grid, self.patches)


def patch_saliency(model, pixel_values):
    """`log_saliency` of the patches that enter the first layer, centred within images: float32 (B, n)."""
    ((_, log),) = log_saliency(model, pixel_values, [0])
    patches = log[:, 1:]
    return patches - patches.mean(1, keepdim=True)


def draw_order(logits, count, generator=None):
    """`count` of n patches per image without replacement, (B, K) in the order drawn: top K of logits + Gumbel noise.

    Args:
        logits: (B, n). generator: on CPU, wherever the logits are; None: no noise, the most likely first.
    """
    if generator is not None:
        uniform = torch.rand(logits.shape, generator=generator).clamp_(1e-10, 1 - 1e-7)
        logits = logits - (-uniform.log()).log().to(logits.device)
    return logits.topk(count, 1).indices


def draw_with_rest(logits, count, scored, generator=None):
    """(B, K): `scored` patches as `draw_order` draws them, and after them others, drawn uniformly from the rest."""
    order = draw_order(logits, scored, generator)
    if scored == count:
        return order
    rest = torch.zeros_like(logits).scatter_(1, order, -torch.inf)
    return torch.cat((order, draw_order(rest, count - scored, generator)), 1)


def order_log_prob(logits, order):
    """Log-probability of drawing `order` (B, K) without replacement from logits (B, n) (Plackett-Luce): (B,)."""
    chosen = logits.gather(1, order)
    rest = logits.scatter(1, order, -torch.inf).logsumexp(1, keepdim=True)
    # What is still there at each draw: those chosen from here on, and those never chosen.
    there = torch.cat((chosen, rest), 1).flip(1).logcumsumexp(1).flip(1)
    return (chosen - there[:, :-1]).sum(1)


def pair_loss(first_log_prob, second_log_prob, first_reward, second_reward):
    """Leave-one-out policy gradient for two choices per image, each the baseline of the other; all (B,).

    Its gradient is that of -E[reward], whatever makes an image easy or hard, for that is in both rewards.
    """
    advantage = (first_reward - second_reward).detach()
    return -0.5 * (advantage * (first_log_prob - second_log_prob)).mean()
