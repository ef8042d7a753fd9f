"""Policy gradients for gates: reward, returns, advantages and losses, as pure functions on tensors.

An image is an episode of at most L decisions, one per layer that has a policy; it ends with one prediction.
Letters: B images, L layers that decide, K all layers.
"""

import torch
from torch.nn import functional as F


REWARDS = ("correct", "probability", "blockdrop")
RETURNS = ("to-go", "terminal", "dynavit")
COST_WEIGHTS = ("uniform", "depth", "latency")


def depth_weights(num_layers):
    """(K,) weights of the layers' costs that rise with depth, as in the public code of Mersha & Assefa (2022).

    A geometric curve from 0.1 to 0.9 with K + 1 points, through a softmax, without its last point: they do not sum to 1.
    """
    curve = torch.logspace(-1, torch.log10(torch.tensor(0.9)).item(), num_layers + 1, dtype=torch.float64)
    return curve.softmax(0)[:-1].float()


def are_soft(labels, problem_type):
    """Whether labels (B, C) are shares of one label (mixup), not decisions of their own."""
    return labels.ndim == 2 and problem_type == "single_label_classification"


def outcome(logits, labels, reward, problem_type=None):
    """Task reward, (B,): 1 or 0 for `"correct"` and `"blockdrop"`, the label's probability otherwise.

    Args:
        labels: (B,) class indices, or (B, C) of 1 and 0 for multi-label problems: the share of labels that are right,
            the mean probability of what they are, and for `"blockdrop"` whether all are right.
        problem_type: of the model's configuration; of soft labels (`are_soft`) the mean reward over their classes.
    """
    if are_soft(labels, problem_type):
        said = logits.detach().float().softmax(-1)
        said = said if reward == "probability" else F.one_hot(said.argmax(-1), said.shape[-1])
        return (said * labels).sum(1)
    if labels.ndim == 2:
        said, true = logits.detach().float(), labels > 0.5
        if reward == "probability":
            return torch.where(true, said, -said).sigmoid().mean(1)
        right = ((said > 0) == true).float()
        return right.amin(1) if reward == "blockdrop" else right.mean(1)
    if (
        labels.device.type == "cpu" and labels.numel() and labels.min() < 0
    ):  # elsewhere a step would wait for the answer
        raise ValueError(f"a reward needs the class of each image, from 0 on: got labels {labels.tolist()}")
    if reward == "probability":
        return logits.detach().float().softmax(-1).gather(1, labels[:, None]).squeeze(1)
    return (logits.detach().argmax(-1) == labels).float()


def terminal_reward(earned, spent, price, reward="correct", penalty=1.0):
    """Reward of each image, (B,).

    Args:
        earned: (B,) from `outcome`. spent: (B,) weighted cost of the image. price: what cost 1 takes from the reward.
        reward: `"correct"`, `"probability"`: earned - price * spent; `"blockdrop"` (Wu et al., 2018, Eq. 2):
            1 - spent^2 where the prediction is right, -penalty where it is wrong.
    """
    if reward == "blockdrop":
        return torch.where(earned > 0.5, 1 - spent**2, torch.full_like(spent, -penalty))
    return earned - price * spent


def layer_returns(rewards, layer_spent, price, kind="to-go", discount=1.0):
    """Return of each decision, (L, B).

    Args:
        rewards: (B,). layer_spent: (L, B) what each deciding layer spent of the weighted cost.
        kind: `"to-go"`: the reward without the cost of earlier layers, which the decision cannot change;
            `"terminal"`: the reward, discounted by the layers still to come;
            `"dynavit"`: the latter, normalised over the layers of each image. A labelled reproduction: it keeps the
            sign of the reward alone, for it is a fixed vector over layers times the reward (public code); it needs two
            layers at least.
    """
    layers = len(layer_spent)
    if kind == "dynavit":
        if layers < 2:
            raise ValueError("returns 'dynavit' compare the layers of an image: they need two that decide, not one")
        rewards = rewards + 1e-5  # of the public code: a reward of exactly 0 would have no sign
    if kind == "to-go":
        before = layer_spent.cumsum(0) - layer_spent
        return rewards + price * before
    later = torch.arange(layers - 1, -1, -1, device=rewards.device)
    returns = rewards * (discount**later)[:, None]
    if kind == "dynavit":
        returns = (returns - returns.mean(0)) / returns.std(0).clamp(min=1e-8)
    return returns


def advantages(returns, baseline, normalise=True):
    """returns (L, B) - baseline, which broadcasts; centred per layer and scaled to deviation 1 over the batch."""
    advantage = returns - baseline
    if not normalise:
        return advantage
    advantage = advantage - advantage.mean(1, keepdim=True)
    return advantage / advantage.std().clamp(min=1e-6) if advantage.numel() > 1 else advantage


def policy_loss(log_probs, advantage):
    """REINFORCE: its gradient is that of -E[return]. log_probs, advantage (L, B); sum over layers, mean over images."""
    return -(advantage.detach() * log_probs).sum(0).mean()


def value_loss(values, returns):
    """Squared error of the value networks' predictions (L, B)."""
    return F.mse_loss(values, returns.detach())
