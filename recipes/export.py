"""Take a model to where it runs: python recipes/export.py --model DIR --format openvino --output DIR2 [--data_files FILE]

Writes a folder that OpenVINO or ONNX Runtime predicts from without PyTorch, each image in the time that its own decisions
take: `DynViTRuntime.from_pretrained(DIR2).predict(images)`. With --check_images the logits are compared with PyTorch's on
validation images, with --quantize int8 the predictions are; what was found stands in the folder's README.md. int8 is calibrated
on --images of train, which ONNX Runtime may do without.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, PreTrainedConfig

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.data import DataArguments, load_validation
from hf_dynvit.deploy import FORMATS, DynViTRuntime, check_export, export
from hf_dynvit.deploy.agreement import agreement
from hf_dynvit.deploy.export import check_preprocessing
from hf_dynvit.measure.files import check_weights
from hf_dynvit.model.resolution import resized
from hf_dynvit.settings import parse_settings


@dataclass
class ExportArguments:
    """Which model, for which runtime, and where to write it."""

    model: str | None = field(
        default=None, metadata={"help": "the model with gates, or a plain ViT: folder or Hub id"}
    )
    format: str = field(default="openvino", metadata={"help": f"one of {list(FORMATS)}"})
    output: str | None = field(default=None, metadata={"help": "new folder for the result"})
    batch: str = field(
        default="one", metadata={"help": "one: images one by one; dynamic: any number of them together"}
    )
    quantize: str | None = field(default=None, metadata={"help": "int8: the linear layers of the blocks in 8 bits"})
    images: int | None = field(
        default=None,
        metadata={"help": "images of train to calibrate int8 on; by default 200 for openvino, and none for onnx"},
    )
    check_images: int = field(default=0, metadata={"help": "images of validation to compare with PyTorch; 0: none"})
    seed: int = field(default=0, metadata={"help": "which images are used"})

    def __post_init__(self):
        if not self.model or not self.output:
            raise ValueError(f"--model and --output are needed, got {self.model!r} and {self.output!r}")
        if self.images is None:
            self.images = 200 if self.format == "openvino" else 0
        if self.images < 0 or self.check_images < 0:
            raise ValueError(f"images and check_images must be 0 or more, got {self.images} and {self.check_images}")


@dataclass
class OptionalDataArguments(DataArguments):
    """`DataArguments`, which may name no images where none are needed."""

    def __post_init__(self):
        if self.data_files or self.dataset_name:
            super().__post_init__()


def main(argv=None):
    """Export; returns an `Agreement`, or None without check_images."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, ExportArguments, OptionalDataArguments)
    calibrates = args.quantize is not None and args.images > 0
    if calibrates or args.check_images:
        DataArguments.__post_init__(data_args)
    check_weights(args.model)
    gated = PreTrainedConfig.get_config_dict(args.model)[0].get("model_type") == "dynvit"
    load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
    model = load(args.model, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(args.model)
    check_export(model, args.format, args.batch, args.quantize, () if calibrates else None)
    check_preprocessing(processor)

    def pixels(split, count):
        images = load_validation(replace(data_args, validation_split=split), processor, model.config, args.seed)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:count].tolist()
        found = torch.stack([images[index]["pixel_values"] for index in order])
        return (resized(found, model.config.resolution) if model.config.resolution else found).numpy()

    calibration = pixels(data_args.train_split, args.images) if calibrates else None
    checked = pixels(data_args.validation_split, args.check_images) if args.check_images else None
    export(model, args.output, args.format, args.batch, args.quantize, calibration, processor)
    if checked is None:
        print(f"{args.output}: {args.format}, not compared with PyTorch: --check_images N does")
        return None
    found = agreement(model, DynViTRuntime.from_pretrained(args.output), checked)
    text = found.text(args.model, args.format, args.quantize)
    (Path(args.output) / "README.md").write_text(f"# {Path(args.output).name}\n\n{text}\n")
    print(text)
    if args.quantize is None:
        found.check()
    return found


if __name__ == "__main__":
    main()
