"""What was measured of a model, as results hold it: by the trainer that taught it, or on the images of a loader."""

import copy
import json
from dataclasses import asdict
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoModelForImageClassification, EvalPrediction

from ..data import crop_of
from ..measure.files import weights_digest
from ..measure.provenance import measured_on
from ..measure.usage import UsageMeter
from ..model.cost import dense_macs
from ..model.modeling_dynvit import DynViTForImageClassification
from ..training.metrics import compute_metrics
from ..training.presets import gate_facts
from ..training.trainer import DynViTTrainer
from .results import AgentRun, Scores, Training


MEASURED = ("accuracy", "cost", "cost_std", "cost_min", "cost_max")


def collect(model_args, data_args, trainer, data, metrics, seconds):
    """The `Training` of a finished run, without its checkpoint as given."""
    args, model, processor = trainer.args, trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    chosen = args.agent_evaluation != "all"
    dtype = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32"
    return Training(
        **model_facts(model),
        start_weights=weights_digest(model_args.model_name_or_path) if model_args.model_name_or_path else None,
        dataset=data_args.name(),
        split=data.reported_split,
        split_files=data_args.files_of(data.reported_split),
        images=len(data.validation),
        crop_pct=None if processor is None else crop_of(json.loads(processor.to_json_string())),
        **vars(scores(metrics, model, "eval_")),
        price=final_price(trainer.state.log_history, trainer.objective.logged.get("price", [])),
        usage=trainer.eval_usage.per_layer(),  # on the main process's share of the images
        train_seconds=seconds,
        agent=None if trainer.agent is None else AgentRun.of(trainer.agent.report()),
        chosen=scores(metrics, model, "eval_chosen_") if chosen else None,
        resumed=args.resume_from_checkpoint is not None,
        images_seen=min(trainer.state.global_step * per_step, round(trainer.state.epoch * len(data.train))),
        epochs=trainer.state.epoch,
        steps=trainer.state.global_step,
        batch_size=per_step,
        processes=args.world_size,
        **measured_on(args.device, dtype, args.seed),
        settings={"model": asdict(model_args), "data": asdict(data_args), "training": args.to_sanitized_dict()},
    )


def model_facts(model):
    """The fields of `ModelResults` that the model itself says."""
    config = model.config
    facts = {name: getattr(config, name) for name in ("layer_mask", "resolution", "cascade", "last_layer")}
    facts["num_layers"] = config.num_hidden_layers
    return gate_facts(model) | facts | {"gmacs_dense": gmacs_dense(model)}


def scores(metrics, model, prefix=""):
    """`Scores` from what `compute_metrics` found of a model, under its names with `prefix`."""
    found = {name: metrics[prefix + name] for name in MEASURED}
    found |= {name: metrics.get(prefix + name) for name in ("accuracy_top5", "loss")}
    if model.config.num_labels <= 5:  # any prediction has the label among the first five
        found["accuracy_top5"] = None
    return Scores(**found, gmacs=found["cost"] * gmacs_dense(model))


def gmacs_dense(model):
    """10^9 multiply-accumulates of an image in the dense model."""
    config = model.config
    return dense_macs(config, model.num_tokens, config.num_labels) / 1e9


class Evaluated(NamedTuple):
    """What a model gave on B images of C classes.

    Attributes:
        scores: the `Scores`. usage: as of `UsageMeter.per_layer`. logits: float32 (B, C). cost: float32 (B,). labels: as given.
        looks: int64 (B,) of a cascade, None of other models.
    """

    scores: Scores
    usage: dict
    logits: torch.Tensor
    cost: torch.Tensor
    labels: torch.Tensor
    looks: torch.Tensor | None


@torch.inference_mode()
def evaluate(model, loader, name="model"):
    """`Evaluated` of a model on the images of a loader; its tensors are on CPU."""
    parts, looks, usage = [], [], UsageMeter()
    for batch in tqdm(loader, desc=f"accuracy of {name}", unit="batch"):
        out = model(batch["pixel_values"].to(model.device))
        parts.append((out.logits.float().cpu(), out.cost.float().cpu(), batch["labels"]))
        looks += [] if out.looks is None else [out.looks.cpu()]
        usage.update(out.decisions or ())
    logits, cost, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    metrics = compute_metrics(EvalPrediction((logits.numpy(), cost.numpy()), labels.numpy()))
    return Evaluated(
        scores(metrics, model), usage.per_layer(), logits, cost, labels, torch.cat(looks) if looks else None
    )


def final_price(log_history, unlogged=()):
    """Mean price of cost in the last quarter of what a policy's training has logged of it; None without a policy.

    Args:
        unlogged: prices of single steps, scalar tensors; they count where the training was too short to log any.
    """
    prices = [entry["price"] for entry in log_history if "price" in entry] or [price.item() for price in unlogged]
    last = prices[-max(1, len(prices) // 4) :]
    return sum(last) / len(last) if last else None


def given_results(model_args, args, data):
    """`Scores` of the checkpoint as given, on the same images by the same code."""
    args = copy.copy(args)
    args.agent, args.agent_evaluation = "none", "all"
    load = AutoModelForImageClassification.from_pretrained
    load = load if model_args.gate_list() == "keep" else DynViTForImageClassification.from_vit
    model = load(model_args.model_name_or_path, dtype=torch.float32)
    return scores(DynViTTrainer(model=model, args=args).evaluate(data.validation), model, "eval_")
