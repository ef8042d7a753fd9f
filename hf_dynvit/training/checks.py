"""Arguments that a `DynViTTrainer` refuses, of the ordinary `Trainer` and its own with a model, each with its reason.

All that is not named here means what it means in transformers; tests/training/test_trainer_arguments.py lists all.
"""

from transformers.trainer_optimizer import is_optimizer_factory
from transformers.utils import logging

from ..objectives.gate_kinds import token_gates
from ..objectives.task_loss import check_classes
from .arguments import DynViTTrainingArguments
from .bypass import check_bypass
from .harm import check_units
from .presets import preset_arguments, preset_of
from .sharing import check_shares


logger = logging.get_logger("hf_dynvit.training.trainer")
# These group or update the parameters themselves, and would give gates the rate of the body.
OWN_GROUPS = ("galore_", "apollo_", "lomo", "adalomo")


def learns(model):
    """Whether the model has gates that learn."""
    return bool(model.learned_gates())


def compares(args):
    """The argument that has the Trainer compare checkpoints, or None."""
    if args.load_best_model_at_end:
        return "load_best_model_at_end"
    return "save_strategy 'best'" if args.save_strategy == "best" else None


def check_arguments(args):
    """Refuse arguments of the `Trainer` that cannot do here what they say.

    Raises:
        ValueError: it names the argument and says why.
    """
    if not isinstance(args, DynViTTrainingArguments):
        raise ValueError(f"args must be DynViTTrainingArguments, got {type(args).__name__}")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, and would split each batch over copies of the model: start with "
            "accelerate launch or torchrun, a process for each, or set CUDA_VISIBLE_DEVICES"
        )
    if args.use_liger_kernel:
        raise ValueError("use_liger_kernel is for language models: there are no such kernels for a ViT")
    if args.neftune_noise_alpha is not None:
        raise ValueError("neftune_noise_alpha adds noise to the embeddings of text: a ViT has none")
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError("train_sampling_strategy 'group_by_length' is for text: all images are equally long")
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"label_names must be ['labels'], which the losses of gates and agents read: {args.label_names}"
        )
    if (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(
            "activation_checkpointing_kwargs use_reentrant=True would lose the gradients that reach gates through the "
            "cost: leave it out"
        )


def check_trainer(trainer):
    """Refuse what does not fit the trainer's model; warn where gates are not taught as their preset wants it.

    Raises:
        ValueError: it names the argument and says why.
    """
    args, config = trainer.args, trainer.model.config
    check_classes(config)
    if getattr(trainer.model, "_hf_peft_config_loaded", False) and config.gates:
        raise ValueError(
            "a model with adapters (PEFT) is saved without its gates: merge the adapters into the checkpoint, and put gates on that"
        )
    if trainer.train_dataset is not None:
        check_cascade(trainer)
    if not args.train_body and not learns(trainer.model):
        raise ValueError("train_body is false, which needs gates that learn: the model has none")
    if (
        trainer.train_dataset is not None
    ):  # who only evaluates has nothing to fit: the dense model, by the same arguments
        _check_fitted(args, trainer.model)
    calibration = trainer.calibration_dataset
    if calibration is not None and not hasattr(calibration, "__len__"):
        raise ValueError(
            "images to calibrate on are drawn at random: give calibration_dataset with a length, for a "
            f"{'train_dataset' if calibration is trainer.train_dataset else 'calibration_dataset'} without length cannot be "
            f"drawn from, got {type(calibration).__name__}"
        )
    steered = [name for name, there in (("gates", learns(trainer.model)), ("an agent", args.agent != "none")) if there]
    if steered:
        _check_steered(args, " and ".join(steered))
    if learns(trainer.model):
        if args.tuning_budgets and config.budget not in args.tuning_budgets:
            raise ValueError(
                f"tuning_budgets must have the model's budget among them, {config.budget}, got {args.tuning_budgets}"
            )
        _check_gates(args, trainer.optimizer_cls_and_kwargs)
        if trainer.train_dataset is not None:
            _warn_of_another_objective(args, config)


def warn_of_16_bits(model):
    """Warn where what learns is of 16 bits: a step of a usual learning rate is less than what rounding takes from a weight."""
    learning = {
        str(weight.dtype) for weight in model.parameters() if weight.requires_grad and weight.dtype.itemsize < 4
    }
    if learning:
        logger.warning(
            f"weights of {', '.join(sorted(learning))} learn, of which most are left as they are by small steps: load the model in "
            "torch.float32 (from_vit(..., dtype=torch.float32)), and give bf16=True or fp16=True for speed"
        )


def check_cascade(trainer):
    """Refuse what cannot be trained with several looks; nothing without a cascade.

    Raises:
        ValueError: it names the argument and says why.
    """
    args = trainer.args
    if trainer.model.config.cascade is None:
        if args.looks_together:
            raise ValueError(
                "looks_together is for the looks of a cascade, and this model has none: give cascade, or leave it"
            )
        return
    if args.looks_together and args.world_size > 1:
        raise ValueError(
            f"looks_together runs several forwards for a backward, which processes that share gradients do not: give one process, "
            f"got {args.world_size}, or train looks in turn"
        )
    if args.looks_together and args.agent != "none":
        raise ValueError(
            f"looks_together would ask agent {args.agent!r} for patches several times a step: train looks in turn"
        )
    if trainer.calibration_dataset is None or args.calibration_images < 1:
        raise ValueError(
            "a cascade needs images that are not trained on, to find from which confidence an image is done: give "
            f"calibration_dataset and calibration_images of at least 1, got {args.calibration_images}"
        )
    if compares(args):
        raise ValueError(
            f"{compares(args)} would compare cascades that take all of their looks: from which confidence on they do not is "
            "found at the end of training"
        )
    if args.bypass_images:
        raise ValueError(f"bypass_images are for models of one look, got {args.bypass_images} and a cascade")
    if args.tuning_budgets:
        raise ValueError(
            f"the looks of a cascade have a budget each, which the steps take: no tuning_budgets, got {args.tuning_budgets}"
        )
    if args.objective == "reinforce":
        raise ValueError("objective 'reinforce' rewards one look, and a cascade has several: take 'cost'")
    if not args.follows_budget():
        raise ValueError(f"a cascade is calibrated to its budget, which objective {args.objective!r} does not follow")


def _check_fitted(args, model):
    if args.bypass_images:
        check_bypass(model)
    if args.harm_images:
        check_units(model)
        check_shares(args.harm_shares)
    if args.importance_images and not token_gates(model):
        raise ValueError(
            f"importance_images {args.importance_images} are for learned gates of tokens (patch, merge): the model has none"
        )


def _check_steered(args, what):
    if args.torch_compile:
        raise ValueError(
            f"torch_compile cannot be given with {what}: what changes from step to step would be compiled anew each "
            "time; compile the trained model"
        )
    if args.auto_find_batch_size:
        raise ValueError(
            f"auto_find_batch_size cannot be given with {what}: it begins again with what the failed attempt has left "
            "of them; give per_device_train_batch_size"
        )


def _check_gates(args, optimizer_cls_and_kwargs):
    if str(args.optim.value).startswith(OWN_GROUPS) and optimizer_cls_and_kwargs is None:
        raise ValueError(
            f"optim {args.optim.value!r} groups the parameters itself, and gates have a group of their own: take another"
        )
    if str(args.optim.value).startswith("schedule_free_"):
        raise ValueError(
            f"optim {args.optim.value!r} evaluates other weights than it trains, and what is calibrated for the one is not right for "
            "the other: take another beside gates that learn"
        )
    if optimizer_cls_and_kwargs is not None and is_optimizer_factory(optimizer_cls_and_kwargs[0]):
        raise ValueError(
            "optimizer_cls_and_kwargs with a factory groups the parameters itself, and gates have a group of their own: "
            "give a class, or optimizers"
        )
    if compares(args) and not args.follows_budget():
        raise ValueError(
            f"{compares(args)} would compare checkpoints at different costs: objective {args.objective!r} holds the cost at no "
            "budget"
        )


def _warn_of_another_objective(args, config):
    preset = preset_of(config)
    wanted = preset_arguments(preset).get("objective", args.objective)
    if wanted != args.objective:
        logger.warning(
            f"the gates are those of preset {preset!r}, which are taught with objective {wanted!r}, not "
            f"{args.objective!r}: DynViTTrainingArguments(..., **preset_arguments({preset!r})) says how "
            "(hf_dynvit.training.presets)"
        )
