"""A step of a trainer on one batch, outside of a training: to be timed, or to see what memory it takes."""

import torch

from ..measure.memory import peak_mib


LATE = 10**6  # learning rounds into the training: silent epochs are over, and hardly any choice is left to chance


class TrainingStep:
    """What a `DynViTTrainer` does with a batch: agent, forward, backward, update; the model and the agent do learn.

    Args:
        trainer: a `DynViTTrainer`; where its training stands is overwritten.
        inputs: {"pixel_values", "labels"}, a batch.

    Attributes:
        learn_every: of so many steps the agent learns in one; 1 where it never does, or always.
    """

    def __init__(self, trainer, inputs):
        self.trainer, self.agent = trainer, trainer.agent
        if not trainer.accelerator._models:
            trainer.accelerator.prepare_model(trainer.model)  # in the precision of the training
        self.inputs = {name: value.to(trainer.args.device) for name, value in inputs.items()}
        self.optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6)
        options = None if self.agent is None else self.agent.agent.options
        self.learn_every = getattr(options, "learn_every", 1)
        replay = None if self.agent is None else getattr(self.agent.agent, "replay", None)
        while replay is not None and not replay.ready():
            self.learning()

    def ordinary(self, index=0):
        """A step in which the agent chooses and does not learn; `index` is for `interleaved_seconds`."""
        self._step(LATE * self.learn_every + 1)

    def learning(self, index=0):
        """A step in which the agent learns as well."""
        self._step(LATE * self.learn_every)

    def calls(self):
        """Kind of step -> function that takes one: "ordinary", and "learning" where that is another."""
        return {"ordinary": self.ordinary} | ({"learning": self.learning} if self.learn_every > 1 else {})

    def mean(self, values):
        """Mean of values of `calls` over the steps of a training, by how often each kind is taken."""
        learning = values.get("learning", values["ordinary"])
        return values["ordinary"] + (learning - values["ordinary"]) / self.learn_every

    def peak_mib(self):
        """MiB that a step holds at once in which the agent learns, beyond weights, optimiser states and the batch."""
        return peak_mib(self.learning, self.trainer.args.device)

    def _step(self, batch):
        if self.agent is not None:
            self.agent.epoch, self.agent.batches, self.agent.batch_in_epoch = LATE, batch, batch - 1
        self.trainer.model.train()
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.agent is not None:
            self.agent.on_step_end(self.trainer.args, self.trainer.state, self.trainer.control)
