"""Evaluation on the patches that an agent chooses for each image, reported beside the one on all patches."""

from contextlib import contextmanager


AGENT_EVALUATIONS = ("all", "chosen")


class ChosenEvaluation:
    """A second evaluation of a `DynViTTrainer` with an agent; the patches not chosen are gone before the first layer.

    Attributes:
        running: whether it is this evaluation that the trainer runs now.
    """

    def __init__(self, trainer):
        self.trainer, self.running = trainer, False

    def metrics(self, dataset, ignore_keys, prefix):
        """Those of `compute_metrics` on `dataset`, a dataset or as `Trainer.evaluate` takes it; they are logged too.

        The cost contains the agent's: what it reads and the scoring, which come on top of the model's forward.
        """
        trainer = self.trainer
        with self._running():
            found = trainer.evaluation_loop(
                trainer.get_eval_dataloader(dataset),
                description="Evaluation on chosen patches",
                prediction_loss_only=True if trainer.compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            ).metrics
        trainer.log(found)
        # Ends the progress bar; on_evaluate would tell others that these are the metrics on all patches.
        trainer.control = trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, found)
        return found

    def forward(self, model, inputs):
        """The outputs on the chosen patches, the agent's work in their cost."""
        agent = self.trainer.agent
        patches = agent.evaluation_patches(inputs["pixel_values"])
        outputs = model(**inputs, patches=patches, merge_patches=agent.agent.merges)
        outputs.cost = outputs.cost + agent.choice_cost
        return outputs

    @contextmanager
    def _running(self):
        self.running = True
        try:
            yield
        finally:
            self.running = False
