"""What teaches straight-through gates: the cost against a budget, AdaViT's usage targets, and the dense model's logits.

Pure functions on tensors. Letters: B images, N tokens, H heads, C classes.
"""

import torch
from torch.nn import functional as F


def budget_loss(cost, budget):
    """Squared distance of the batch's mean cost (B,) from the budget (one loss on the whole, as in DyDiT, Eq. 6)."""
    return (cost.mean() - budget) ** 2


def usage_loss(decisions, token_target=0.5, head_target=0.5, sublayer_target=0.5):
    """AdaViT's usage loss as the published code computes it, unweighted.

    Squared distance for tokens ([CLS] counted), absolute distance for heads and sub-layers; the heads of an image whose
    attention and MLP are both off are left out.

    Args:
        decisions: L `LayerDecisions`.
        token_target, head_target, sublayer_target: share of units to use, in [0, 1].

    Returns:
        A scalar; 0 for kinds that no gate decides.
    """
    total = 0.0
    tokens = [d.attention_tokens for d in decisions if d.attention_tokens is not None]
    if tokens:
        total = total + (torch.stack(tokens).float().mean() - token_target) ** 2
    sublayers = [d.sublayers for d in decisions if d.sublayers is not None]
    if sublayers:
        total = total + (torch.stack(sublayers).float().mean() - sublayer_target).abs()
    heads = [d for d in decisions if d.heads is not None]
    if heads:
        keep = torch.stack([d.heads for d in heads]).float()  # (L, B, H)
        active = torch.stack([_active(d) for d in heads]).unsqueeze(-1)  # (L, B, 1)
        total = total + ((keep * active).sum() / (active.sum() * keep.shape[-1]).clamp(min=1) - head_target).abs()
    return total


def _active(decision):
    """(B,): 1 where an image runs at least one of the two sub-layers."""
    if decision.sublayers is None:
        return torch.ones(len(decision.heads), device=decision.heads.device)
    return (decision.sublayers > 0.5).any(1).float()


def is_multi_label(config):
    """Whether a model's classes are there or not independently of each other; None becomes known with its first loss."""
    return config.problem_type == "multi_label_classification"


def distillation_loss(logits, teacher_logits, temperature=1.0, multi_label=False):
    """KL(teacher || student) of (B, C) logits softened by `temperature`, times its square (Hinton et al., 2015).

    Args:
        multi_label: each logit is a decision of its own: the mean KL of C distributions over two outcomes.
    """
    if multi_label:
        student, teacher = ((z / temperature).float() for z in (logits, teacher_logits))
        yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return (yes + no).mean() * temperature**2
    student = F.log_softmax(logits.float() / temperature, -1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, -1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
