"""What a model learns in closed form, around training: bypasses, importance, and thresholds at the budget."""

from contextlib import contextmanager

from torch.utils.data import DataLoader

from .bypass import fit_bypass
from .calibration import WORTH_A_WARNING, calibration_images
from .closed_form import fit_units
from .importance import fit_importance
from .processes import draw_alike
from .shifts import Shifts


ROUGHLY = 128  # images on which thresholds are set that steps go on to move


def prepare(trainer):
    """Fit and calibrate what the trainer's arguments ask for, on images of its `calibration_dataset`."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    if args.images_first() and (args.bf16_full_eval or args.fp16_full_eval):  # not there before the Trainer trains
        model.to(args.device)
    _fit(trainer, fit_bypass, args.bypass_images, "bypass_explains")
    _fit(trainer, fit_importance, args.importance_images, "importance_explained")
    if args.harm_images:
        _share(trainer)
    if args.calibrate_first:
        for_now(trainer)


def for_now(trainer):
    """Calibrate in the course of a training: what a cascade's confidences can reach then is not what they reach at its end."""
    config = trainer.accelerator.unwrap_model(trainer.model).config
    budget = config.budget
    trainer.calibrate()
    if config.cascade is not None:
        config.budget_confidences, config.budget = None, budget


def finish(trainer):
    """After the last step: the importance of tokens for the body as it is now, where nothing else taught it.

    Not without a calibration: other scores at the same thresholds cost something else.
    """
    args = trainer.args
    if args.freeze_gates_at == 0.0 and args.calibration_images and args.follows_budget():
        _fit(trainer, fit_importance, args.importance_images, "importance_explained")
    trainer.calibrate(args.tuning_budgets)


def shifts_to(trainer, budgets):
    """What brings thresholds that meet the first of several budgets to each of them, roughly; 0 where nothing calibrates."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    most = min(args.calibration_images, ROUGHLY)
    if len(budgets) == 1 or trainer.calibration_dataset is None or not (most and args.follows_budget()):
        return [0.0] * len(budgets)
    was_training = model.training
    model.eval()
    try:
        with pixels(trainer, most) as batches:
            shifts = Shifts(model, batches)
            return [0.0] + [shifts.nearest(budget, WORTH_A_WARNING / 2)[0] for budget in budgets[1:]]
    finally:
        model.train(was_training)


def _fit(trainer, fit, count, name):
    """Fit on `count` images, and log the mean share of the variance that is explained."""
    if not count:
        return
    with pixels(trainer, count) as batches:
        shares = fit(trainer.accelerator.unwrap_model(trainer.model), batches)
    trainer.log({name: round(sum(shares.values()) / len(shares), 4)})


def _share(trainer):
    """Fit gates of heads and sub-layers, and log the share of the computation that they save at first."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    with pixels(trainer, args.harm_images) as batches:
        best = fit_units(model, batches, model.config.budget, args.harm_shares, args.harm_per_image)[0]
    trainer.log({"harm_share": best.share, "harm_distance": round(best.distance, 4)})


@contextmanager
def pixels(trainer, most):
    """Batches of `pixel_values` of `most` images of `calibration_dataset`, and meanwhile the layout of evaluation."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    chosen = calibration_images(trainer.calibration_dataset, most, trainer.args.seed)
    # Without what `remove_unused_columns` takes out of the Trainer's own batches.
    collator = trainer._get_collator_with_removed_columns(trainer.data_collator, "calibration")
    loader = DataLoader(chosen, trainer.args.per_device_eval_batch_size, collate_fn=collator)
    layout, model.layout = model._layout, None
    try:
        with trainer.compute_loss_context_manager(), draw_alike(trainer.args):
            yield [trainer._prepare_input(batch["pixel_values"]) for batch in loader]
    finally:
        model.layout = layout
