"""The auxiliary objective: scores of tokens learn from heads of their own, thrown away after training (Token Cropr).

At each gate of tokens the logits of its linear score attend: their softmax pools the tokens, and a small head predicts from
that. What helps it to predict is what the score finds important. No gradient of it reaches the backbone, which learns from
what is left, in the packed layout and with the decisions of use, from the first step (Bergner et al., CVPR 2025, 3.1).

What differs from the published code: the one query has no projections of queries, keys and values, whose sum over heads is
one linear map of the token anyway; tokens are normed by the layer; [CLS] neither votes nor leaves.

Letters: B images, N tokens, D channels, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..model.decisions import patches_there
from ..model.gate import NO_EXPLORATION
from .base import Objective
from .gate_kinds import token_gates
from .options import at_least_one, choice, option


FAR = 1e4  # below any logit: a token that is not there


class AuxiliaryObjective(Objective):
    """Cross entropy of the heads, mean over the gates.

    Raises:
        ValueError: from `prepare` of a trainer that trains a model with gates, none of tokens with a linear score, gates that
            are frozen from the start, or whose thresholds do not begin at the budget, several processes, a multi-label
            problem, or an optimizer of one's own, which would not know the heads.
    """

    @dataclass
    class Options:
        auxiliary_weight: float = option(1.0, help="weight of the heads' cross entropy")
        auxiliary_target: str = choice(
            "labels", "prediction", help="what they predict: 'labels', or the model's 'prediction'"
        )
        auxiliary_learning_rate: float = option(1e-3, help="peak learning rate of the heads, which begin at random")
        auxiliary_ratio: int = at_least_one(4, help="width of a head's MLP, in channels of the model")

    trains_packed = True
    gating = "threshold"
    has_heads = True

    def __init__(self, options):
        super().__init__(options)
        self._seen, self._hooks = {}, []

    @property
    def heads_learning_rate(self):
        return self.options.auxiliary_learning_rate

    def prepare(self, trainer):
        super().prepare(trainer)
        if trainer.train_dataset is None or not trainer.model.config.gates:
            return
        model, args, gates = trainer.model, trainer.args, token_gates(trainer.model)
        if not gates:
            raise ValueError(
                "objective 'auxiliary' teaches learned gates of tokens with a linear score: the model has none"
            )
        if args.freeze_gates_at == 0.0:
            raise ValueError(
                "objective 'auxiliary' teaches gates, and freeze_gates_at 0.0 leaves no step for it: give more"
            )
        if not args.calibrate_first and any(map(_by_threshold, gates.values())):
            raise ValueError(
                "objective 'auxiliary' leads no threshold to a budget, it teaches at the one they are at: give calibrate_first"
            )
        if args.world_size > 1 or trainer.optimizer is not None:
            raise ValueError(
                "objective 'auxiliary' has heads of its own, for one process and the Trainer's own optimizer: got "
                f"{args.world_size} processes, optimizer {type(trainer.optimizer).__name__}"
            )
        if model.config.problem_type == "multi_label_classification":
            raise ValueError("objective 'auxiliary' is for one label an image, got a multi-label problem")
        width, classes = model.host.sizes(model.config).width, model.config.num_labels
        heads = {str(layer): AuxiliaryHead(width, self.options.auxiliary_ratio, classes) for layer in gates}
        self.heads = nn.ModuleDict(heads)
        self.heads.to(args.device)

    def state_dict(self):
        return {"begun": True}

    def load_state_dict(self, saved):
        if saved:
            return
        for gate in token_gates(self.trainer.model).values():
            if not _by_threshold(gate) and not gate.score.weight.any():
                # Where the best stay, equal scores would let the same places go in all images.
                nn.init.trunc_normal_(gate.score.weight, std=gate.score.in_features**-0.5)

    def exploration(self, step):
        """Nothing is explored; from here to `loss` what gates read is noted."""
        self.release()
        for layer, gate in token_gates(self.trainer.accelerator.unwrap_model(self.trainer.model)).items():
            self._hooks.append(gate.register_forward_pre_hook(self._note(layer, gate)))
        return NO_EXPLORATION

    def _note(self, layer, gate):
        def hook(module, args):
            self._seen[layer] = gate, args[0].detach(), args[4]

        return hook

    def release(self):
        for hook in self._hooks:
            hook.remove()
        self._seen, self._hooks = {}, []

    def loss(self, model, inputs, outputs, step):
        """The heads' part of the loss; 0 where no gate learns any more."""
        seen = {layer: found for layer, found in self._seen.items() if found[0].score.weight.requires_grad}
        self.release()
        if not seen:
            return 0.0
        by_label = self.options.auxiliary_target == "labels"
        target = inputs["labels"] if by_label else outputs.logits.detach().float().softmax(-1)
        losses, right = [], []
        for layer, (gate, tokens, state) in seen.items():
            logits = self.heads[str(layer)](pooled(gate, tokens, state)).float()
            losses.append(nn.functional.cross_entropy(logits, target))
            right.append((logits.argmax(-1) == (target if target.ndim == 1 else target.argmax(-1))).float().mean())
        total = torch.stack(losses).mean()
        self.log(auxiliary_loss=total.detach(), auxiliary_accuracy=torch.stack(right).mean())
        return self.options.auxiliary_weight * total


def _by_threshold(gate):
    """Whether a gate keeps what a threshold says; else it keeps a number of tokens, the best."""
    return getattr(gate, "amount", "threshold") == "threshold"


class AuxiliaryHead(nn.Module):
    """A residual MLP and a classifier, each after a norm: (B, D) -> (B, C)."""

    def __init__(self, width, ratio, classes):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.classifier = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x):
        return self.classifier(self.last(x + self.mlp(self.norm(x))))


def pooled(gate, tokens, state):
    """The patch tokens that are there, of tokens (B, N, D), weighed by the softmax of the gate's score: (B, D)."""
    logits = gate.score(tokens).squeeze(-1).float() * tokens.shape[-1] ** -0.5
    there = patches_there(tokens, state, gate.protected)
    weights = logits.masked_fill(~there, -FAR).softmax(-1)
    return (weights.unsqueeze(1) @ tokens.float()).squeeze(1)
