"""The formulas of the patch agents: schedules, rewards, choices and targets, as pure functions on tensors.

Letters: B images, n patches (no [CLS]), K kept patches.
"""

import math

import torch


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
    rewards = max(0, epochs - silent_epochs) * (per_epoch // every)
    if epochs >= silent_epochs:
        rewards += last // every
    return max(0, rewards - sample + 1)


def kept_count(progress, desired, patches, return_fraction):
    """Patches to keep: `desired`, then over the last `return_fraction` of training linearly up to all of them.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    begin = 1.0 - return_fraction
    if progress <= begin:
        return desired
    return min(patches, round(desired + (patches - desired) * (progress - begin) / return_fraction))


def patch_reward(dropped, patches, desired):
    """-|z - ideal| / ideal of z dropped patches, ideal = patches - desired; 0 at the target, negative elsewhere.

    A target of all patches leaves nothing to divide by: its ideal counts as 1.
    """
    ideal = patches - desired
    return -abs(dropped - ideal) / max(ideal, 1)


def agentvit_reward(first_loss, loss, dropped, patches, desired, loss_weight=1.0, time_weight=20.0):
    """AgentViT's reward of a batch: first loss / this loss, without bound, plus the weighted patch reward."""
    return loss_weight * first_loss / loss + time_weight * patch_reward(dropped, patches, desired)


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
