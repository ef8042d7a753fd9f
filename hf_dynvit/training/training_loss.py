"""The loss of a training step: of the prediction, against a teacher, and of the objective, for each look that learns."""

import torch

from ..objectives.task_loss import distillation_loss


class TrainingLoss:
    """Reads what it needs of a `DynViTTrainer`: model and teacher, schedule, objective, agent and arguments."""

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args

    def __call__(self, model, inputs, num_items_in_batch=None):
        """(loss, outputs of the last look that learns, mean cost of each look (L,)) of a batch.

        Raises:
            ValueError: nothing learns. FloatingPointError: the loss is not finite.
        """
        losses, costs, target = [], [], self._target(inputs)
        for look in self.trainer.schedule.looks():
            loss, outputs = self._of_look(model, inputs, target, look, num_items_in_batch)
            losses.append(loss)
            costs.append(outputs.cost.detach().mean())
        loss = sum(losses) / len(losses)
        self._check(loss)
        return loss, outputs, torch.stack(costs)

    def _target(self, inputs):
        """The teacher's logits (B, C), if there is a teacher and anything learns from it."""
        teacher = self.trainer.teacher
        if teacher is None or not self.args.distillation_weight or not self.args.prediction_teaches():
            return None
        with torch.no_grad():
            return teacher(inputs["pixel_values"]).logits

    def _of_look(self, model, inputs, target, look, num_items_in_batch):
        """(loss, outputs) of a training forward: of a look of a cascade, or, None, of a model without."""
        trainer, objective, task_loss = self.trainer, self.trainer.objective, self.trainer.task_loss
        step = trainer.schedule.step(look)
        options = {"gating": "threshold" if trainer.schedule.frozen() else objective.gating}
        options |= {"exploration": objective.exploration(step)} | ({} if look is None else {"look": look})
        if trainer.agent is not None:
            patches, merges = trainer.agent.choose(inputs["pixel_values"]), trainer.agent.agent.merges
            options |= {"patches": patches, "merge_patches": merges}
        outputs = model(**task_loss.inputs(inputs), **options)
        labels, share = inputs.get("labels"), task_loss.share()
        outputs.loss = task_loss(outputs, labels, num_items_in_batch)
        loss = outputs.loss if self.args.prediction_teaches() else 0.0
        if target is not None:
            distance = distillation_loss(outputs.logits, target, task_loss.is_multi_label(labels))
            loss = loss + share * self.args.distillation_weight * distance
        trainer.train_usage.update(outputs.decisions)
        return loss + share * objective.loss(model, inputs, outputs, step), outputs

    def _check(self, loss):
        if not torch.is_tensor(loss) or not loss.requires_grad:
            raise ValueError(
                "nothing learns: the body is not trained and no gate decided in training "
                f"(frozen {self.trainer.schedule.frozen()}, objective {self.args.objective!r})"
            )
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.trainer.state.global_step}: training stops; the checkpoints in "
                f"{self.args.output_dir} are kept. Lower learning_rate or gate_learning_rate, or train in float32."
            )
