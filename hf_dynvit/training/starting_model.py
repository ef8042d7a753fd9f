"""Starting model of a training: a checkpoint with or without gates, or a fresh ViT, as `ModelArguments` name it."""

from contextlib import contextmanager
from dataclasses import dataclass

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
from transformers.hf_argparser import HfArg

from ..measure.files import check_classifier, check_weights
from ..model.configuration_dynvit import check_last_layer
from ..model.modeling_dynvit import DynViTForImageClassification
from ..search.export import start_from_mask
from .looks import read_looks


@dataclass
class ModelArguments:
    """Arguments of the model to start from."""

    model_name_or_path: str | None = HfArg(default=None, help="dense ViT to start from: folder or Hub id")
    new_vit: str | None = HfArg(
        default=None, help="instead of a checkpoint: YAML of ViTConfig fields, for a ViT to train from scratch"
    )
    gates: str = HfArg(
        default="adavit", help="a preset, a YAML list of gates, 'none' (stays dense) or 'keep' (the checkpoint's own)"
    )
    start_mask: str | None = HfArg(
        default=None, help="searched model (its folder) whose layer_mask fresh block gates start from; None: open"
    )
    budget: float | None = HfArg(
        default=None,
        help="mean cost to aim at, relative to the dense model; None: 0.5, or that of gates that are kept",
    )
    resolution: int | None = HfArg(
        default=None,
        help="side that images are resized to inside the model, a multiple of the patches'; None: as they come. The "
        "teacher sees them as they come, and the cost stays relative to the dense model on them",
    )
    cascade: list[str] = HfArg(
        default_factory=list,
        help="several looks at an image, the cheapest first, each as side of images @ mean cost: 160@0.2 224@0.5, auto (two for "
        "the budget) or every (three for any); steps train them in turn, and only unsure images get the next, so that the mean "
        "cost is the budget",
    )
    last_layer: str | None = HfArg(
        default=None,
        help="'read': the last layer computes what the classifier reads ([CLS], which attends to all tokens as ever); logits are "
        "the same, and a dense ViT of 12 layers costs 0.93. None: all tokens",
    )
    teacher: str = HfArg(
        default="base", help="to distil from: 'base' (the checkpoint itself), 'none', a folder or Hub id"
    )
    attn_implementation: str = HfArg(
        default="sdpa", help="attention of the masked layout: 'sdpa', or 'eager' (faster on CPU in bf16)"
    )
    new_classifier: bool = HfArg(default=False, help="new classes: take names and number from the data")
    dataset_terms: str | None = HfArg(default=None, help="terms of the data, for the model card")
    num_processes: int | None = HfArg(
        default=None, help="refuse to run on another number of processes; None: any number"
    )
    evaluate_dense: bool = HfArg(default=True, help="also report on the checkpoint as given")
    license: str | None = HfArg(default=None, help="licence of the model, for the model card")

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
        if self.resolution is not None and (self.new_vit is not None or self.gate_list() == "keep"):
            raise ValueError(
                f"resolution {self.resolution} is for a dense checkpoint; a model with gates keeps its own, and new_vit has "
                "image_size"
            )
        check_last_layer(self.last_layer)
        if self.last_layer is not None and (self.new_vit is not None or self.gate_list() == "keep"):
            raise ValueError(
                f"last_layer {self.last_layer!r} is for a dense checkpoint; a model with gates keeps its own, and new_vit is a plain ViT"
            )
        read_looks(self.cascade)
        if self.cascade and (self.resolution is not None or self.new_vit is not None or self.gate_list() == "keep"):
            raise ValueError(
                f"cascade {self.cascade} is for a dense checkpoint, in place of resolution; a model with gates keeps its own"
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
        """Gates as `from_vit` takes them: None, the name of a preset or a list of dicts."""
        gates = read_gates(self.gates)
        return None if gates in (None, "none") else gates


def read_gates(words):
    """Gates as a recipe is given them: a word, or a list of dicts in YAML; ValueError for what is neither."""
    try:
        gates = yaml.safe_load(words)
    except yaml.YAMLError as error:
        raise ValueError(f"gates {words!r} is no YAML: {error}") from error
    listed = isinstance(gates, list) and all(isinstance(gate, dict) for gate in gates)
    if not (gates is None or isinstance(gates, str) or listed):
        raise ValueError(f"gates must be a preset, none, keep, or a list such as '[{{gate: merge}}]', got {words!r}")
    return gates


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
    path, gates, classes = model_args.model_name_or_path, model_args.gate_list(), {}
    if model_args.new_classifier:
        names = data.names or [f"LABEL_{index}" for index in range(data.num_labels)]
        classes = {"num_labels": data.num_labels, "id2label": dict(enumerate(names))}
        classes["label2id"] = {name: index for index, name in enumerate(names)}
    if model_args.new_vit is not None:
        base_config.update(classes)
        vit = ViTForImageClassification(base_config)
        vit.set_attn_implementation(model_args.attn_implementation)
        return DynViTForImageClassification.from_vit(vit)
    if not model_args.new_classifier:
        check_classifier(path, base_config)
    if (gates == "keep") != (base_config.model_type == "dynvit"):
        raise ValueError(
            f"{path} is a {base_config.model_type!r} model: gates 'keep' is for models with gates, and the only choice for "
            f"them; got gates {model_args.gates!r}"
        )
    options = {"attn_implementation": model_args.attn_implementation, "dtype": torch.float32, **classes}
    options["ignore_mismatched_sizes"] = model_args.new_classifier
    if gates == "keep":
        model = DynViTForImageClassification.from_pretrained(path, **options)
        model_args.budget = model.config.budget if model_args.budget is None else model_args.budget
        table = model.config.budget_table()
        if table is not None and not table[0][0] <= model_args.budget <= table[-1][0]:  # training reaches others
            model.drop_budgets()
        model.set_budget(model_args.budget)
        return model
    looks = read_looks(model_args.cascade, base_config, model_args.budget, bool(gates))
    budget = model_args.budget if gates or looks else 1.0
    own = {"resolution": model_args.resolution, "cascade": looks, "last_layer": model_args.last_layer}
    model = DynViTForImageClassification.from_vit(path, gates=gates, budget=budget, **own, **options)
    if model_args.start_mask:
        with naming("start_mask", model_args.start_mask):
            mask = getattr(AutoConfig.from_pretrained(model_args.start_mask), "layer_mask", None)
            if mask is None:
                raise ValueError("it has no layer_mask: recipes/search.py writes a model that has one to picked/")
        start_from_mask(model, mask)
    return model


def load_teacher(model_args, args, config):
    """The dense classifier to distil from, or None."""
    if model_args.teacher == "none" or not args.distillation_weight or not args.prediction_teaches():
        return None
    source = model_args.model_name_or_path if model_args.teacher == "base" else model_args.teacher
    dtype = torch.bfloat16 if args.bf16 else torch.float32  # what autocast would cast it to, over and over
    with naming("teacher", source):
        check_weights(source)
        its_config = AutoConfig.from_pretrained(source)
        check_classifier(source, its_config)
        if its_config.model_type == "vit":
            # Without gates, and packed: the same model, and faster.
            teacher = DynViTForImageClassification.from_vit(source, dtype=dtype)
        else:
            teacher = AutoModelForImageClassification.from_pretrained(source, dtype=dtype)
    if teacher.config.num_labels != config.num_labels:
        raise ValueError(f"teacher {source} has {teacher.config.num_labels} classes, the model {config.num_labels}")
    names, others = (list(one.id2label.values()) for one in (config, teacher.config))
    if names != others and sorted(names) == sorted(others):
        raise ValueError(
            f"teacher {source} has the model's classes in another order: {others[:5]}, the model {names[:5]}"
        )
    return teacher


@contextmanager
def naming(key, value):
    """Adds to an error of loading which setting it comes from."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{key} {value!r} cannot be loaded: {error}") from error
