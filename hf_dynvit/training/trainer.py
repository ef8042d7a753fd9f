"""`DynViTTrainer`: the ordinary Trainer, with objective, budget schedule, packed tuning and patch agents."""

import torch
from transformers import default_data_collator
from transformers.utils import logging

from ..agents import PatchAgent
from ..measure.usage import UsageMeter
from ..objectives.task_loss import TaskLoss
from .calibration import WORTH_A_WARNING, calibrate, check_budgets
from .checkpoints import CheckpointTrainer, ObjectiveState
from .checks import check_arguments, check_cascade, check_trainer, compares, learns, warn_of_16_bits
from .metrics import compute_metrics as default_metrics
from .parameter_groups import heads_group, learning, parameter_groups
from .preparation import finish, pixels, prepare
from .processes import draw_apart, prepare_processes, refuse_sharding
from .schedule import GateSchedule, PackedTuning
from .training_loss import TrainingLoss


logger = logging.get_logger("hf_dynvit.training.trainer")


class DynViTTrainer(CheckpointTrainer):
    """Trains a model with gates; also the same model without, by the same recipe.

    Args:
        model: a `DynViTForImageClassification`.
        args: `DynViTTrainingArguments`.
        teacher: a dense classifier to distil from, or None.
        calibration_dataset: images on which the cost is brought to the budget (labels are not used): a part of train,
            prepared as for evaluation. None: no calibration; with `calibrate_first` or `importance_images`, images of
            `train_dataset`.
        kwargs: as for `Trainer`, without `model_init`; `compute_metrics` defaults to top-1, top-5 and mean cost, of
            predictions (logits, cost). `compute_loss_func` and `label_smoothing_factor` are about the prediction's
            loss; those of gates and teacher are added.

    With `load_best_model_at_end`, an evaluation counts only if its cost is the budget, within 0.02: the best model is the
    best at that cost.

    On several devices each process holds the whole model (DistributedDataParallel); sharding is refused.

    Raises:
        ValueError: an empty dataset, arguments that cannot do here what they say (checks.py), an agent that does not
            fit the model, or a model that would be sharded; from `train`, a budget out of reach, or a checkpoint
            that is damaged.
        FloatingPointError: a loss that is not finite; the last checkpoint is kept.
    """

    def __init__(self, model=None, args=None, teacher=None, calibration_dataset=None, **kwargs):
        for name, dataset in {**kwargs, "calibration_dataset": calibration_dataset}.items():
            if name.endswith("_dataset") and hasattr(dataset, "__len__") and len(dataset) == 0:
                raise ValueError(f"{name} is empty")
        if kwargs.get("model_init") is not None:
            raise ValueError(
                "model_init makes the model anew when training begins, and schedule, policies and agent belong to one "
                "model: give model, and build a trainer for each trial"
            )
        kwargs.setdefault("compute_metrics", default_metrics)
        kwargs.setdefault("data_collator", default_data_collator)
        check_arguments(args)
        if model is not None:
            prepare_processes(model, args)
        super().__init__(model=model, args=args, **kwargs)
        refuse_sharding(self)
        self.calibration_dataset = calibration_dataset
        if self.args.images_first() and calibration_dataset is None and self.model.config.gates:
            self.calibration_dataset = self._images_of_train()
        check_trainer(self)
        draw_apart(self.args)
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        self.task_loss, self.training_loss = TaskLoss(self), TrainingLoss(self)
        self.train_usage, self.eval_usage = UsageMeter(), UsageMeter()
        self._train_costs, self.step_costs = [], []
        self.schedule, self.tuning = GateSchedule(self), PackedTuning(self)
        self.add_callback(self.tuning)
        self.objective = self.args.make_objective()
        self.objective.prepare(self)
        self.add_callback(ObjectiveState(self.objective))
        if self.args.agent != "none":
            self.agent = PatchAgent(self)
            self.add_callback(self.agent)

    # ------------------------------------------------------------------------------------------ objective

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.get("labels")
        if not model.training:
            given = self.task_loss.inputs(inputs)
            chosen = self.agent is not None and self.agent.evaluates
            outputs = self.agent.forward(model, given) if chosen else model(**given)
            outputs.loss = self.task_loss(outputs, labels, num_items_in_batch)
            self.eval_usage.update(outputs.decisions or ())
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        loss, outputs, costs = self.training_loss(model, inputs, num_items_in_batch)
        if self.agent is not None:
            self.agent.observe(inputs, outputs)
        self.step_costs.append(costs)
        self._train_costs.append(costs.mean())
        return (loss, outputs) if return_outputs else loss

    # ------------------------------------------------------------------------------------------ training

    def calibrate(self, budgets=()):
        """Shift the gates until the mean cost on `calibration_dataset` is the budget; returns (shift, cost) or None.

        With `budgets` the model gets a table of them and of its own budget instead (`calibrate`, calibration.py).
        """
        model = self.accelerator.unwrap_model(self.model)
        has_images = self.calibration_dataset is not None and self.args.calibration_images > 0
        cascade = model.config.cascade is not None
        if not (has_images and self.args.follows_budget() and (learns(model) or cascade)):
            return None
        with pixels(self, self.args.calibration_images) as batches:
            several = {model.config.budget} if cascade else {model.config.budget, *budgets}
            aim = {"budgets": several} if len(several) > 1 else {"budget": model.config.budget}
            shift, cost = calibrate(model, batches, **aim)
        self.log({"calibration_shift": round(shift, 4), "calibration_cost": round(cost, 4)})
        return shift, cost

    def _images_of_train(self):
        """Images for what comes before training, without a calibration_dataset; None for a trainer that only evaluates."""
        train = self.train_dataset
        if hasattr(train, "__len__"):
            taken = ", ".join(f"{name} takes {min(n, len(train))}" for name, n in self.args.images_first().items())
            logger.warning(
                f"no calibration_dataset is given: {taken} images of train_dataset, prepared as they are for training"
            )
        return train

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        resume_from_checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        check_cascade(self)
        first = self.args.images_first() if self.model.config.gates else {}
        if first and self.calibration_dataset is None:
            names = " and ".join(first)
            raise ValueError(f"{names} needs images to calibrate on: give calibration_dataset or train_dataset")
        if self.args.follows_budget():
            self.schedule.full_cost = check_budgets(self.model, [self.model.config.budget, *self.args.tuning_budgets])
        model, layout = self.model, self.model._layout
        if model.config.budget_table() is not None:
            model.drop_budgets()
            logger.warning("the table of budgets is dropped: training changes what it was measured for")
        if self.objective.trains_packed:
            model.layout = "packed"
        try:
            with learning(model, self.args.train_body):
                warn_of_16_bits(model)
                if not resume_from_checkpoint:
                    prepare(self)
                result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.tuning.come_back()
            model.layout = layout
            self.objective.release()
        if learns(model) and compares(self.args) and self.state.best_model_checkpoint is None:
            logger.warning(f"{compares(self.args)}: no evaluation found the cost at the budget; the last weights stay")
        finish(self)
        return result

    # ------------------------------------------------------------------------------------------ Trainer's parts

    def create_optimizer(self, model=None):
        """As the `Trainer`'s, gates in groups of their own (parameter_groups.py)."""
        model = self.model if model is None else model
        if self.optimizer is not None or not learns(model):
            return super().create_optimizer(model)
        groups = parameter_groups(model, self.args, self.get_decay_parameter_names(model))
        if self.objective.heads is not None:
            groups.append(heads_group(self.objective, self.args))
        cls, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = cls(groups, **options)
        return self.optimizer

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Predictions are (logits, cost): `compute_metrics` sees what was spent."""
        if ignore_keys is None:
            ignore_keys = [key for key in self.model.config.keys_to_ignore_at_inference if key != "cost"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As the `Trainer`'s; with `agent_evaluation="chosen"` also `{prefix}_chosen_...` of the chosen patches."""
        self.eval_usage.reset()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.args.agent_evaluation == "chosen" and not isinstance(datasets, dict):  # each of a dict came here
            metrics = metrics | self.agent.evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_chosen")
        return metrics

    def log(self, logs, start_time=None):
        """Adds the mean cost and usage of training, and the usage per layer of evaluation."""
        if "loss" in logs and self._train_costs:
            used = {"cost": torch.stack(self._train_costs).mean().item()}
            used |= {f"usage/{kind}": share for kind, share in self.train_usage.means().items()}
            logs |= self._over_processes(used)
            logs |= self.objective.logs()
            logs |= {} if self.agent is None else self.agent.logs()
            self._train_costs = []
            self.train_usage.reset()
        if "eval_loss" in logs:
            logs |= self._over_processes(self.eval_usage.flat("eval_"))
        super().log(logs, start_time)

    def _over_processes(self, values):
        """Name -> mean of what the processes, each with as many images, have counted."""
        if self.args.world_size > 1 and values:
            means = torch.tensor([*values.values()], device=self.args.device)
            values = dict(zip(values, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        return {name: round(value, 4) for name, value in values.items()}

    def _determine_best_metric(self, metrics, trial):
        """As the `Trainer`'s; an evaluation at another cost than the budget is never the best."""
        if learns(self.model) and compares(self.args):
            costs = [value for name, value in metrics.items() if name.endswith("_cost") and "_chosen_" not in name]
            if not costs:
                raise ValueError("to compare checkpoints at one cost, compute_metrics must give the mean 'cost'")
            if max(abs(cost - self.model.config.budget) for cost in costs) > WORTH_A_WARNING:
                return False
        return super()._determine_best_metric(metrics, trial)
