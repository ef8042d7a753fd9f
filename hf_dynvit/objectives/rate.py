"""The rate objective, the ratio loss of DynamicViT (Rao et al., 2021): each gate keeps as many tokens in training as in use.

    loss = rate_weight * mean_b mean_s (kept_bs - rate_s)^2

over the images b and the gates s. `kept` is the share of all patches that is left after a gate, and `rate` what its fixed
number leaves in evaluation: of 0.7 at three depths 0.7, 0.49 and 0.343, of gates that fuse one token of the rest more. The
gradient reaches gates straight-through, in the masked layout.
`cost` has one target for all gates together, under which one of them may keep what another one drops.
"""

from dataclasses import dataclass

import torch

from ..model.amounts import kept_of
from ..model.decisions import UNTOUCHED, patches_there
from ..model.matching import count
from .base import Objective
from .options import option


class RateObjective(Objective):
    """Each gate that keeps a number of tokens is held to it.

    Raises:
        ValueError: from `prepare` of a trainer that trains a model with gates, none that learn and decide tokens with `keep` or
            `top`, others that learn, gates of tokens that keep no fixed number, or gates that are frozen from the start.
    """

    @dataclass
    class Options:
        rate_weight: float = option(2.0, help="weight of the squared distances from the rates of the gates")

    def prepare(self, trainer):
        super().prepare(trainer)
        if trainer.train_dataset is None or not trainer.model.config.gates:
            return
        if trainer.args.freeze_gates_at == 0.0:
            raise ValueError(
                "objective 'rate' teaches gates, and freeze_gates_at 0.0 leaves no step for it: give more"
            )
        stages = _stages(trainer.model)
        taught = [gate for gate in trainer.model.learned_gates() if gate in stages.values()]
        others = [type(gate).__name__ for gate in trainer.model.learned_gates() if gate not in stages.values()]
        others += [
            type(gate).__name__ for gate in stages.values() if getattr(gate, "amount", None) not in ("keep", "top")
        ]
        if others or not taught:
            raise ValueError(
                "objective 'rate' is for gates of tokens that keep a number of them, keep or top, and learn which: the model has "
                f"{others or 'none'}"
            )

    def loss(self, model, inputs, outputs, step):
        if not outputs.cost.requires_grad:  # no gates, or frozen ones
            return 0.0
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        losses, distances, left = [], [], None
        for layer, gate in _stages(model).items():
            keep = outputs.decisions[layer].attention_tokens
            patches = keep.shape[1] - count(gate.protected, keep.shape[1])
            left = patches if left is None else left
            stays = kept_of(gate.amount, gate.number, left)
            stays += gate.pairs and stays < left  # the token of the rest
            kept = (keep * patches_there(keep, UNTOUCHED, gate.protected)).sum(1) / patches  # (B,)
            losses.append(((kept - stays / patches) ** 2).mean())
            distances.append((kept.detach().mean() - stays / patches).abs())
            left = stays if gate.drop else left
        self.log(rate_error=torch.stack(distances).mean())
        return self.options.rate_weight * torch.stack(losses).mean()


def _stages(model):
    """Layer -> gate that decides tokens, of the layers that run."""
    mask = model.config.layer_mask
    return {
        layer: gates["attention_tokens"]
        for layer, gates in enumerate(model.gates)
        if "attention_tokens" in gates and (mask is None or any(mask[layer]))
    }
