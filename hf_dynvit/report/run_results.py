"""What a training run found, as results.json holds it."""

import copy
from dataclasses import asdict

import torch
from transformers import AutoModelForImageClassification

from ..measure.files import weights_digest
from ..measure.provenance import measured_on
from ..model.cost import dense_macs
from ..model.modeling_dynvit import DynViTForImageClassification
from ..training.presets import gate_facts
from ..training.trainer import DynViTTrainer


def collect(model_args, data_args, trainer, data, metrics, seconds):
    """Everything that results.json holds."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    images_seen = min(trainer.state.global_step * per_step, round(trainer.state.epoch * len(data.train)))
    dense = dense_macs(config, model.num_tokens, config.num_labels)
    dtype = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32"
    return {
        "kind": "training",
        **gate_facts(model),
        "start_weights": weights_digest(model_args.model_name_or_path) if model_args.model_name_or_path else None,
        "layer_mask": config.layer_mask,
        "num_layers": config.num_hidden_layers,
        "dataset": data_args.name(),
        "split": data.reported_split,
        "split_files": data_args.files_of(data.reported_split),
        "images": len(data.validation),
        "accuracy": metrics["eval_accuracy"],
        "accuracy_top5": metrics["eval_accuracy_top5"],
        "loss": metrics["eval_loss"],
        **{name: metrics[f"eval_{name}"] for name in ("cost", "cost_std", "cost_min", "cost_max")},
        "gmacs": metrics["eval_cost"] * dense / 1e9,
        "gmacs_dense": dense / 1e9,
        "price": final_price(trainer.state.log_history, trainer.objective.logged.get("price", [])),
        "usage": trainer.eval_usage.per_layer(),  # on the main process's share of the images
        "train_seconds": seconds,
        "agent": None if trainer.agent is None else trainer.agent.report(),
        "chosen": chosen_results(args, metrics, dense),
        "resumed": args.resume_from_checkpoint is not None,
        "images_seen": images_seen,
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "batch_size": per_step,
        "processes": args.world_size,
        **measured_on(args.device, dtype, args.seed),
        "settings": {"model": asdict(model_args), "data": asdict(data_args), "training": args.to_sanitized_dict()},
    }


def final_price(log_history, unlogged=()):
    """Mean price of cost in the last quarter of what a policy's training has logged of it; None without a policy.

    Args:
        unlogged: prices of single steps, scalar tensors; they count where the training was too short to log any.
    """
    prices = [entry["price"] for entry in log_history if "price" in entry] or [price.item() for price in unlogged]
    last = prices[-max(1, len(prices) // 4) :]
    return sum(last) / len(last) if last else None


def chosen_results(args, metrics, dense):
    """What the model does on the patches alone that its agent chooses for each image; None unless asked for."""
    if args.agent_evaluation == "all":
        return None
    names = ("accuracy", "accuracy_top5", "loss", "cost", "cost_std", "cost_min", "cost_max")
    found = {name: metrics[f"eval_chosen_{name}"] for name in names}
    return found | {"gmacs": found["cost"] * dense / 1e9}


def given_results(model_args, args, data, gmacs):
    """Accuracy and cost of the checkpoint as given, on the same images by the same code."""
    args = copy.copy(args)
    args.agent, args.agent_evaluation = "none", "all"
    load = AutoModelForImageClassification.from_pretrained
    load = load if model_args.gate_list() == "keep" else DynViTForImageClassification.from_vit
    model = load(model_args.model_name_or_path, dtype=torch.float32)
    metrics = DynViTTrainer(model=model, args=args).evaluate(data.validation)
    top5 = metrics["eval_accuracy_top5"]
    cost = metrics["eval_cost"]
    return {"accuracy": metrics["eval_accuracy"], "accuracy_top5": top5, "cost": cost, "gmacs": cost * gmacs}
