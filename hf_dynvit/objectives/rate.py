"""The rate objective (DynamicViT, Rao et al., 2021, Eq. 12): in training each gate keeps as many tokens as in evaluation.

    loss = rate_weight * mean_b mean_s (kept_bs - rate_s)^2

over the images b and the gates s. `kept` is the share of all patches that is left after a gate, and `rate` what its fixed
number leaves in evaluation: of 0.7 at three depths 0.7, 0.49 and 0.343. The gradient reaches gates straight-through.
`cost` has one target for all gates together, under which one of them may keep what another one drops.
"""

from dataclasses import dataclass

import torch

from ..model.amounts import kept_of
from ..model.decisions import UNTOUCHED, patches_there
from .base import Objective
from .options import option


class RateObjective(Objective):
    """Each gate that keeps a number of tokens is held to it.

    Raises:
        ValueError: from `prepare` of a trainer that trains, no learned gates of tokens with `keep` or `top`, others that learn,
            or gates of tokens that keep no fixed number.
    """

    @dataclass
    class Options:
        rate_weight: float = option(2.0, help="weight of the squared distances from the rates of the gates")

    def prepare(self, trainer):
        super().prepare(trainer)
        if trainer.train_dataset is None:
            return
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
            patches = patches_there(keep, UNTOUCHED, gate.protected)
            count = patches[0].sum().item()
            left = count if left is None else left
            stays = kept_of(gate.amount, gate.number, left)
            kept = (keep * patches).sum(1) / count  # (B,)
            losses.append(((kept - stays / count) ** 2).mean())
            distances.append((kept.detach().mean() - stays / count).abs())
            left = stays if gate.drop else left
        self.log(rate_error=torch.stack(distances).mean())
        return self.options.rate_weight * torch.stack(losses).mean()


def _stages(model):
    """Layer -> gate that decides tokens."""
    return {index: gates["attention_tokens"] for index, gates in enumerate(model.gates) if "attention_tokens" in gates}
