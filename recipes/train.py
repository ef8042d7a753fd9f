"""Train a ViT to skip computation: accelerate launch recipes/train.py recipes/EXPERIMENT.yaml [--key value ...]

Loads a dense checkpoint, puts gates on it (or none: the dense baseline by the same recipe), trains, reports on the
validation split, and writes model, card, pictures and results.json to output_dir.
"""

import copy
import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path


# This folder holds an evaluate.py, which must not hide the library of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

# Packed training meets a new number of rows in every step, and 16-bit products on CPU compile a kernel for each.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.cost import dense_macs
from hf_dynvit.data import SetEpoch, load_image_data
from hf_dynvit.data_source import DataArguments
from hf_dynvit.environment import measured_on
from hf_dynvit.export import burn_in
from hf_dynvit.presets import preset_arguments, preset_of
from hf_dynvit.publish import describe, push
from hf_dynvit.settings import parse_settings
from hf_dynvit.start import start_from_mask
from hf_dynvit.trainer import DynViTTrainer
from hf_dynvit.training_args import DynViTTrainingArguments


logger = logging.get_logger("hf_dynvit.recipes")


@dataclass
class ModelArguments:
    """Which model to make."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "dense ViT to start from: folder or Hub id"}
    )
    new_vit: str | None = field(
        default=None,
        metadata={"help": "instead of a checkpoint: YAML of ViTConfig fields, for a ViT to train from scratch"},
    )
    gates: str = field(
        default="adavit",
        metadata={"help": "a preset, a YAML list of gates, 'none' (stays dense) or 'keep' (the checkpoint's own)"},
    )
    start_mask: str | None = field(
        default=None,
        metadata={"help": "searched model (its folder) whose layer_mask fresh block gates start from; None: open"},
    )
    budget: float | None = field(
        default=None,
        metadata={
            "help": "mean cost to aim at, relative to the dense model; None: 0.5, or that of gates that are kept"
        },
    )
    teacher: str = field(
        default="base", metadata={"help": "to distil from: 'base' (the checkpoint itself), 'none', a folder or Hub id"}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "attention of the masked layout: 'sdpa', or 'eager' (faster on CPU in bf16)"}
    )
    new_classifier: bool = field(default=False, metadata={"help": "new classes: take names and number from the data"})
    dataset_terms: str | None = field(default=None, metadata={"help": "terms of the data, for the model card"})
    num_processes: int | None = field(
        default=None, metadata={"help": "refuse to run on another number of processes; None: any number"}
    )
    evaluate_dense: bool = field(default=True, metadata={"help": "also report on the checkpoint as given"})
    license: str | None = field(default=None, metadata={"help": "licence of the model, for the model card"})

    def __post_init__(self):
        if self.new_vit is not None:
            if self.model_name_or_path or self.gate_list() is not None:
                raise ValueError(
                    "new_vit trains a dense ViT from scratch: without model_name_or_path, with gates none"
                )
            self.new_classifier, self.teacher, self.evaluate_dense = True, "none", False
        elif not self.model_name_or_path:
            raise ValueError(
                "model_name_or_path is missing: give the dense ViT to start from, --model_name_or_path PATH, or "
                "new_vit to train one"
            )
        if self.new_classifier and self.teacher == "base":
            raise ValueError(
                "the checkpoint cannot teach new classes: with new_classifier, give --teacher PATH or none"
            )
        if self.start_mask and self.gate_list() in (None, "keep"):
            raise ValueError(f"start_mask is where fresh gates start; there are none with gates {self.gates!r}")
        if self.budget is None and self.gate_list() != "keep":
            self.budget = 0.5

    def gate_list(self):
        """What `from_vit` takes: None, the name of a preset or a list of dicts."""
        gates = yaml.safe_load(self.gates)
        return None if gates in (None, "none") else gates


def main(argv=None):
    """Run one recipe; returns the content of results.json."""
    model_args, data_args, args = parse_settings(
        sys.argv[1:] if argv is None else argv,
        ModelArguments,
        DataArguments,
        DynViTTrainingArguments,
        defaults=preset_defaults,
    )
    push_at_end, args.push_to_hub = args.push_to_hub, False  # once, at the end, with the card
    args.resume_from_checkpoint = find_checkpoint(args)
    if model_args.num_processes not in (None, args.world_size):
        raise ValueError(f"this recipe is for {model_args.num_processes} processes, {args.world_size} were launched")
    if args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last would also drop images of the evaluation: leave it out")
    logging.set_verbosity(args.get_process_log_level())
    set_seed(args.seed)

    processor, base_config = load_base(model_args)
    with args.main_process_first(desc="loading the data"):
        data = load_image_data(data_args, processor, base_config, model_args.new_classifier, args.seed)
    model = load_model(model_args, base_config, data)
    trainer = DynViTTrainer(
        model=model,
        args=args,
        teacher=load_teacher(model_args, args, model.config),
        train_dataset=data.train,
        eval_dataset=data.selection,
        calibration_dataset=data.calibration,
        processing_class=processor,
        callbacks=[SetEpoch()],
    )
    logger.info(
        f"{len(data.train)} images to train on, {len(data.validation)} to report on, {args.world_size} processes"
    )

    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - started
    trainer.save_model()  # with the processor
    plain = not trainer.model.config.gates
    if plain and trainer.is_world_process_zero():
        save_plain(trainer, Path(args.output_dir))
    metrics = trainer.evaluate(data.validation)
    trainer.log_metrics("eval", metrics)

    results = collect(model_args, data_args, trainer, data, metrics, seconds)
    if model_args.evaluate_dense and not model_args.new_classifier:
        kept = model_args.gate_list() == "keep"
        results["checkpoint" if kept else "dense"] = given_results(model_args, args, data, results["gmacs_dense"])
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        describe(
            trainer.accelerator.unwrap_model(trainer.model),
            data.validation,
            results,
            folder,
            trainer.agent,
            plain=plain,
            model_id=args.hub_model_id,
            datasets=[data_args.dataset_name] if data_args.is_on_hub() else None,
            license=model_args.license,
            dataset_terms=model_args.dataset_terms,
        )
        if push_at_end:
            push(folder, args.hub_model_id, args.hub_private_repo)
    trainer.accelerator.wait_for_everyone()
    return results


def preset_defaults(words):
    """How the preset that the words name (`--gates NAME`), or that made the gates that are kept, wants them taught."""
    gates, path = last_value(words, "gates") or ModelArguments.gates, last_value(words, "model_name_or_path")
    # Nothing is led from open gates to the budget where gates have learned already, or start from a mask.
    there = {"budget_ramp": 0.0, "curriculum": 0.0}
    if gates != "keep" or not path:
        return {**preset_arguments(gates), **(there if last_value(words, "start_mask") else {})}
    with naming("model_name_or_path", path):
        config = AutoConfig.from_pretrained(path)
    taught = preset_arguments(preset_of(config)) if config.model_type == "dynvit" else {}
    return {**taught, **there}


def last_value(words, key):
    """What the command line's words give for a key, the last time it stands there; "" if it does not."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    given = [
        after if word == f"--{key}" else word.partition("=")[2]
        for word, after in pairs
        if word.partition("=")[0] == f"--{key}"
    ]
    return given[-1] if given else ""


def find_checkpoint(args):
    """The checkpoint to resume from, None to start; refuses an output_dir that already holds a run."""
    folder = Path(args.output_dir)
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    resume = args.resume_from_checkpoint
    if resume is None or str(resume).lower() == "false":
        if last or (folder / "results.json").exists() or (folder / "model.safetensors").exists():
            raise ValueError(
                f"output_dir {str(folder)!r} already holds a run ({last and Path(last).name or 'finished'}): give "
                "another output_dir, or go on with --resume_from_checkpoint true"
            )
        return None
    checkpoint = last if str(resume).lower() == "true" else resume
    if checkpoint is None or not Path(checkpoint).is_dir():
        raise FileNotFoundError(f"there is no checkpoint to resume from: {checkpoint or folder}")
    return checkpoint


@contextmanager
def naming(key, value):
    """Adds to an error of loading which setting it comes from."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{key} {value!r} cannot be loaded: {error}") from error


def load_base(model_args):
    """Image processor and configuration of what training starts from."""
    if model_args.new_vit is not None:
        fields = yaml.safe_load(model_args.new_vit)
        if not isinstance(fields, dict) or not {"image_size", "patch_size"} <= fields.keys():
            raise ValueError(
                f"new_vit must be a YAML dict of ViTConfig fields with image_size and patch_size, got {fields!r}"
            )
        size = {"height": fields["image_size"], "width": fields["image_size"]}
        half = [0.5] * fields.get("num_channels", 3)
        return ViTImageProcessorPil(size=size, image_mean=half, image_std=half), ViTConfig(**fields)
    with naming("model_name_or_path", model_args.model_name_or_path):
        processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path)
        return processor, AutoConfig.from_pretrained(model_args.model_name_or_path)


def save_plain(trainer, folder):
    """The dense ViT as every transformers tool takes it, without this library's code."""
    for file in [*folder.glob("*.py"), folder / "config.json", folder / "model.safetensors"]:
        file.unlink()
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.layer_mask = [[True, True]] * model.config.num_hidden_layers
    burn_in(model).save_pretrained(folder)
    model.config.layer_mask = None


def load_model(model_args, base_config, data):
    """The checkpoint with gates, with its own or with new classes; or a fresh ViT."""
    options = {"attn_implementation": model_args.attn_implementation}
    if model_args.new_classifier:
        names = data.names or [f"LABEL_{index}" for index in range(data.num_labels)]
        options |= {
            "num_labels": data.num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "ignore_mismatched_sizes": True,
        }
    gates = model_args.gate_list()
    if model_args.new_vit is not None:
        names = {name: value for name, value in options.items() if name in ("num_labels", "id2label", "label2id")}
        base_config.update(names)
        vit = ViTForImageClassification(base_config)
        vit.set_attn_implementation(model_args.attn_implementation)
        return DynViTForImageClassification.from_vit(vit)
    if (gates == "keep") != (base_config.model_type == "dynvit"):
        raise ValueError(
            f"{model_args.model_name_or_path} is a {base_config.model_type!r} model: gates 'keep' is for models with "
            f"gates, and the only choice for them; got gates {model_args.gates!r}"
        )
    if gates == "keep":
        model = DynViTForImageClassification.from_pretrained(
            model_args.model_name_or_path, dtype=torch.float32, **options
        )
        if model_args.budget is None:
            model_args.budget = model.config.budget
        model.config.budget = model_args.budget
        return model
    budget = model_args.budget if gates else 1.0
    model = DynViTForImageClassification.from_vit(
        model_args.model_name_or_path, gates=gates, budget=budget, dtype=torch.float32, **options
    )
    if model_args.start_mask:
        start_from_mask(model, load_mask(model_args.start_mask))
    return model


def load_mask(folder):
    """The layer_mask of a model that a search has picked."""
    with naming("start_mask", folder):
        mask = getattr(AutoConfig.from_pretrained(folder), "layer_mask", None)
        if mask is None:
            raise ValueError("it has no layer_mask: recipes/search.py writes a model that has one to picked/")
        return mask


def load_teacher(model_args, args, config):
    """The dense classifier to distil from, or None."""
    if model_args.teacher == "none" or not args.distillation_weight or not args.prediction_teaches():
        return None
    source = model_args.model_name_or_path if model_args.teacher == "base" else model_args.teacher
    dtype = torch.bfloat16 if args.bf16 else torch.float32  # what autocast would cast it to, over and over
    with naming("teacher", source):
        if AutoConfig.from_pretrained(source).model_type == "vit":
            # Without gates, and packed: the same model, and faster.
            teacher = DynViTForImageClassification.from_vit(source, dtype=dtype)
        else:
            teacher = AutoModelForImageClassification.from_pretrained(source, dtype=dtype)
    if teacher.config.num_labels != config.num_labels:
        raise ValueError(f"teacher {source} has {teacher.config.num_labels} classes, the model {config.num_labels}")
    return teacher


def collect(model_args, data_args, trainer, data, metrics, seconds):
    """Everything that results.json holds."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    images_seen = min(trainer.state.global_step * per_step, round(trainer.state.epoch * len(data.train)))
    dense = dense_macs(config, model.vit.embeddings.position_embeddings.shape[1], config.num_labels)
    dtype = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32"
    return {
        "kind": "training",
        "gates": config.gates,
        "layer_mask": config.layer_mask,
        "num_layers": config.num_hidden_layers,
        "dataset": data_args.name(),
        "split": data.reported_split,
        "images": len(data.validation),
        "accuracy": metrics["eval_accuracy"],
        "accuracy_top5": metrics["eval_accuracy_top5"],
        "loss": metrics["eval_loss"],
        "cost": metrics["eval_cost"],
        "gmacs": metrics["eval_cost"] * dense / 1e9,
        "gmacs_dense": dense / 1e9,
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


def chosen_results(args, metrics, dense):
    """What the model does on the patches alone that its agent chooses for each image; None unless asked for."""
    if args.agent_evaluation == "all":
        return None
    found = {name: metrics[f"eval_chosen_{name}"] for name in ("accuracy", "accuracy_top5", "loss", "cost")}
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


if __name__ == "__main__":
    main()
