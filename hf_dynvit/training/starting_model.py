"""What a training starts from: a checkpoint with or without gates, or a fresh ViT; and the arguments that say which."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from ..measure.weight_digest import check_weights
from ..model.modeling_dynvit import DynViTForImageClassification
from ..search.export import start_from_mask


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
        check_weights(model_args.model_name_or_path)
        processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path)
        return processor, AutoConfig.from_pretrained(model_args.model_name_or_path)


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
        check_weights(source)
        if AutoConfig.from_pretrained(source).model_type == "vit":
            # Without gates, and packed: the same model, and faster.
            teacher = DynViTForImageClassification.from_vit(source, dtype=dtype)
        else:
            teacher = AutoModelForImageClassification.from_pretrained(source, dtype=dtype)
    if teacher.config.num_labels != config.num_labels:
        raise ValueError(f"teacher {source} has {teacher.config.num_labels} classes, the model {config.num_labels}")
    return teacher


@contextmanager
def naming(key, value):
    """Adds to an error of loading which setting it comes from."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{key} {value!r} cannot be loaded: {error}") from error
