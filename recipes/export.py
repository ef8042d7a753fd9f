"""Take a model to where it runs: python recipes/export.py --model DIR --format openvino --output DIR2 [--data_files FILE]

Writes a folder that OpenVINO or ONNX Runtime predicts from without PyTorch, each image in the time that its own decisions
take: `DynViTRuntime.from_pretrained(DIR2).predict(images)`. With --check_images the logits are compared with PyTorch's on
validation images, with --quantize int8 the predictions are; with --seconds the time of an image is, alone, beside the dense
model in the same runtime. What was found stands in the folder's README.md and deployment.json. int8 is calibrated
on --images of train, which ONNX Runtime may do without.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, PreTrainedConfig

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.data import ImageArguments, cropping, load_validation
from hf_dynvit.deploy import FORMATS, DynViTRuntime, check_export, export
from hf_dynvit.deploy.agreement import agreement
from hf_dynvit.deploy.export import check_preprocessing
from hf_dynvit.deploy.timing import timings, to_serve
from hf_dynvit.measure import measured_on
from hf_dynvit.measure.files import check_new_folder, check_weights
from hf_dynvit.measure.provenance import device_name
from hf_dynvit.model.kernels import kernels_loaded
from hf_dynvit.model.prepack import can_prepack
from hf_dynvit.report import Deployment, decides, write
from hf_dynvit.report.names import seen
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.presets import gate_facts


TIMED = 64  # of the images that are compared, at most


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
    merges: str = field(
        default="own",
        metadata={
            "help": "own: by each image's thresholds; fixed: as many for all, for runtimes that want known sizes"
        },
    )
    images: int | None = field(
        default=None,
        metadata={
            "help": "images of train for int8 and fixed merges; by default 200, and none for int8 of onnx alone"
        },
    )
    check_images: int = field(default=0, metadata={"help": "images of validation to compare with PyTorch; 0: none"})
    kernels: bool = field(
        default=False, metadata={"help": "time the model in PyTorch with compiled kernels (model.prepack)"}
    )
    seconds: float = field(
        default=0.0,
        metadata={
            "help": f"time to spend on timing the first {TIMED} of the checked images, beside the dense model in the same "
            "runtime; 0: none"
        },
    )
    batch_sizes: list[int] = field(default_factory=list, metadata={"help": f"to time, up to {TIMED}; 1 unless given"})
    seed: int = field(default=0, metadata={"help": "which images are used"})

    def __post_init__(self):
        if not self.model or not self.output:
            raise ValueError(f"--model and --output are needed, got {self.model!r} and {self.output!r}")
        if self.images is None:
            self.images = 200 if self.format == "openvino" or self.merges == "fixed" else 0
        if self.seconds < 0 or (self.seconds and not self.check_images):
            raise ValueError(f"seconds must be 0 or more, and need check_images to be timed on, got {self.seconds}")
        if self.batch_sizes and not self.seconds:
            raise ValueError(f"batch_sizes {self.batch_sizes} are to be timed, and need seconds, got 0")
        self.batch_sizes = self.batch_sizes or [1]
        most = min(self.check_images, TIMED)
        if self.seconds and not all(1 <= size <= most for size in self.batch_sizes):
            raise ValueError(f"batch_sizes must be in 1..{most}, the images that are timed, got {self.batch_sizes}")
        if self.kernels and not self.seconds:
            raise ValueError("kernels are for what is timed, and need seconds, got 0")
        if self.images < 0 or self.check_images < 0:
            raise ValueError(f"images and check_images must be 0 or more, got {self.images} and {self.check_images}")
        check_new_folder(self.output)


@dataclass
class OptionalImageArguments(ImageArguments):
    """`ImageArguments`, which may name no images where none are needed."""

    def __post_init__(self):
        self.check_crop()
        if self.data_files or self.dataset_name:
            super().__post_init__()


def main(argv=None):
    """Export; returns an `Agreement`, or None without check_images."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, ExportArguments, OptionalImageArguments)
    calibrates = (args.quantize is not None or args.merges == "fixed") and args.images > 0
    if calibrates or args.check_images:
        ImageArguments.__post_init__(data_args)
    check_weights(args.model)
    gated = PreTrainedConfig.get_config_dict(args.model)[0].get("model_type") == "dynvit"
    load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
    model = load(args.model, dtype=torch.float32).eval()
    processor = cropping(AutoImageProcessor.from_pretrained(args.model), data_args.crop_pct)
    check_export(model, args.format, args.batch, args.quantize, () if calibrates else None, args.merges)
    check_preprocessing(processor)

    def pixels(split, count):
        images = load_validation(replace(data_args, validation_split=split), processor, model.config, args.seed)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:count].tolist()
        items = [images[index] for index in order]
        return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])

    calibration = pixels(data_args.train_split, args.images)[0] if calibrates else None
    served = None if calibration is None else to_serve(model, calibration).numpy()
    checked, labels = pixels(data_args.validation_split, args.check_images) if args.check_images else (None, None)
    export(model, args.output, args.format, args.batch, args.quantize, served, processor, args.merges)
    if checked is None:
        print(f"{args.output}: {args.format}, not compared with PyTorch: --check_images N does")
        return None
    found = agreement(model, DynViTRuntime.from_pretrained(args.output), to_serve(model, checked).numpy(), labels)
    if args.merges == "fixed":
        found = found._replace(largest=None, same=None)
    text = found.text(args.model, args.format, args.quantize, args.merges)
    timed = []
    if args.seconds:
        model = model.prepack(args.kernels) if can_prepack() else model
        how = {"format": args.format, "batch": args.batch, "quantize": args.quantize, "calibration": calibration}
        timed = timings(model, args.output, checked[:TIMED], args.batch_sizes, args.seconds, **how)
    for one in timed:
        text += (
            f" In batches of {one.batch_size} an image takes {one.exported:.2f} ms, with the dense model in the same runtime "
            f"{one.dense:.2f}, with the same model in PyTorch {one.packed:.2f}, on {torch.get_num_threads()} threads of {device_name('cpu')}."
        )
    results = Deployment(
        **found._asdict(),
        model=args.model,
        decides=decides(gate_facts(model)) + seen(model.config),
        format=args.format,
        batch=args.batch,
        quantize=args.quantize,
        merges=args.merges,
        dataset=data_args.name(),
        timings=timed,
        kernels=kernels_loaded(),
        **measured_on("cpu", "float32", args.seed),
    )
    write(Path(args.output) / "deployment.json", results)
    (Path(args.output) / "README.md").write_text(f"# {Path(args.output).name}\n\n{text}\n")
    print(text)
    if args.quantize is None and args.merges == "own":
        found.check()
    return found


if __name__ == "__main__":
    main()
