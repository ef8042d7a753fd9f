"""Losses of the prediction: `TaskLoss`, as the ordinary `Trainer` has it, and distillation from a teacher."""

from torch.nn import functional as F


def distillation_loss(logits, teacher_logits, multi_label=False):
    """KL(teacher || student) of (B, C) logits (Hinton et al., 2015).

    Args:
        multi_label: each logit is a decision of its own: the mean KL of C distributions over two outcomes.
    """
    student, teacher = logits.float(), teacher_logits.float()
    if multi_label:
        yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return (yes + no).mean()
    student, teacher = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def predicted_log_probability(logits, config):
    """Of what is predicted, float32 (B,): of the likeliest of C classes, or, where each label is a decision of its own, of all.

    Args:
        logits: (B, C), of any precision.
    """
    if config.problem_type == "multi_label_classification":
        return F.logsigmoid(logits.float().abs()).sum(-1)
    return logits.float().log_softmax(-1).amax(-1)


def check_classes(config):
    """ValueError for a regression: predictions are compared as those of classes."""
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        raise ValueError(
            f"this is a regression (num_labels {config.num_labels}, problem_type {config.problem_type!r}): predictions, rewards and "
            'metrics are those of classes; for one label that is there or not: problem_type "multi_label_classification"'
        )


class TaskLoss:
    """Honours `label_smoothing_factor`, `compute_loss_func` and `average_tokens_across_devices` of a `Trainer`.

    Attributes:
        replaces: whether it takes the place of the model's own loss, which is then not computed.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.replaces = trainer.label_smoother is not None or trainer.compute_loss_func is not None

    def inputs(self, inputs):
        """Inputs for the model: without labels where it need not compute its loss."""
        return {name: value for name, value in inputs.items() if name != "labels"} if self.replaces else inputs

    def __call__(self, outputs, labels, num_items_in_batch):
        """The loss of `outputs`, which are the model's on `inputs`; None without labels and a function of one's own."""
        trainer = self.trainer
        if trainer.compute_loss_func is not None:
            loss = trainer.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            if trainer.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * (trainer.accelerator.num_processes if trainer.args.n_gpu <= 1 else trainer.args.n_gpu)
            return loss
        if trainer.label_smoother is not None and labels is not None:
            if labels.ndim > 1:
                shape = tuple(labels.shape)
                raise ValueError(f"label_smoothing_factor is for one class per image, and the labels are {shape}")
            return trainer.label_smoother(outputs, labels, num_items_in_batch=num_items_in_batch)
        return outputs.loss

    def share(self):
        """Factor for other losses: 1 / accumulated batches where the `Trainer` leaves their mean to the task's loss."""
        trainer = self.trainer
        scaled = trainer.loss_is_scaled_for_ga
        scaled = trainer.compute_loss_func is not None if scaled is None else scaled
        return 1 / getattr(trainer, "current_gradient_accumulation_steps", 1) if scaled else 1.0

    def is_multi_label(self, labels):
        """Whether an image may have several classes: as the configuration says, or the labels where it does not.

        Soft labels of a single-label problem (mixup) are (B, C), too.
        """
        problem = self.trainer.model.config.problem_type
        return problem == "multi_label_classification" if problem or labels is None else labels.ndim == 2
