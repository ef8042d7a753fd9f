"""`Objective`: the contract of what teaches gates, beside the loss of the prediction."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..model.gate import Exploration


class Step(NamedTuple):
    """Progress of the training when a batch comes."""

    progress: float  # share of the training steps that are done
    budget: float  # mean cost to aim at in this step
    noise: float  # scale of the noise of sampled decisions, from `gate_noise_start` to `gate_noise_end`


class Objective:
    """Subclasses define `loss`, and `Options`, whose fields are what `objective_options` may set.

    Attributes:
        follows_budget: whether it aims at the model's budget, so that thresholds may be calibrated to it.
        trains_packed: whether what gates drop is not computed: they act, decisions are drawn with a log-probability, unless
            `gating` says otherwise.
            Otherwise they are sampled straight-through, in masked layout, and the prediction's loss reaches the gates.
        heads: an `nn.Module` that learns beside the model and is no part of it: it is in the optimizer and, as a file of its
            own, in checkpoints, but never saved with a model. None: nothing. A class whose objects have one `has_heads`.
        heads_learning_rate: peak learning rate of the heads; None: that of the body.
    """

    @dataclass
    class Options:
        """Nothing to choose."""

    follows_budget = True
    trains_packed = False
    has_heads = False
    heads = None
    heads_learning_rate = None

    def __init__(self, options):
        self.options, self.trainer, self.logged = options, None, {}

    def prepare(self, trainer):
        """Called once, by the `DynViTTrainer` that it teaches for, when all but its agent is built.

        Raises:
            ValueError: a model or arguments that do not fit.
        """
        self.trainer = trainer

    @property
    def gating(self):
        """Mode of the gates while they learn, one of `gate.GATINGS`."""
        return "act" if self.trains_packed else "sample"

    def exploration(self, step):
        """Randomness of the decisions in the next forward, an `Exploration`."""
        return Exploration(noise=step.noise)

    def loss(self, model, inputs, outputs, step):
        """The gates' part of the loss, a scalar; 0 where nothing teaches them.

        Of a cascade whose looks learn together it is called once for each look in a step.

        Args:
            model: as the trainer calls it, in training mode. inputs: {"pixel_values", "labels"}.
            outputs: of the training forward. step: a `Step`.
        """
        raise NotImplementedError

    def release(self):
        """Called when a training ends, however it does: let go of what a step may have left."""

    def state_dict(self):
        """All that resuming needs, JSON-ready: it stands in trainer_state.json."""
        return {}

    def load_state_dict(self, saved):
        """Called when a training begins, with what `state_dict` gave, or {} where it starts anew."""

    def log(self, **values):
        """Note scalar tensors of a step."""
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)

    def logs(self):
        """Means of what was noted since the last call."""
        noted, self.logged = self.logged, {}
        return {name: round(torch.stack(values).float().mean().item(), 4) for name, values in noted.items()}
