"""Measure a model: python recipes/evaluate.py --model DIR --data_files FILE --json OUT

Top-1, top-5, mean cost, GMACs and usage on the validation images, then images per second of the packed model and of the
dense one (the best of eager, SDPA, compiled ahead of time, and ours without gates), timed in turns on real images; a model
that keeps as many tokens of every image also compiled as a whole; with --runtimes beside the dense model in ONNX Runtime and
OpenVINO, fp32 and int8. With --per_image N also whether it pays that the model decides how much to compute of each image, and
a picture of the cheapest and the dearest beside the JSON; with --csv FILE what it said of each image and spent on it. With
--card true accuracy, cost and times stand on the model card, beside a picture of what is computed of some of the images.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from transformers import AutoImageProcessor

from hf_dynvit.data import ImageArguments, crop_of
from hf_dynvit.deploy.compiled import program_of
from hf_dynvit.measure import DTYPES, measured_on, open_models, time_batches
from hf_dynvit.measure.dense import kernels_at_hand
from hf_dynvit.measure.looks import measure_looks
from hf_dynvit.measure.per_image import check_decides, per_image
from hf_dynvit.measure.runtimes import RUNTIMES, Exported, check_runtimes
from hf_dynvit.measure.trained_models import CALIBRATION_IMAGES, first_images, shuffled
from hf_dynvit.model.prepack import can_prepack
from hf_dynvit.report import Evaluation, Runtime, write
from hf_dynvit.report.cards import check_card, describe_evaluation
from hf_dynvit.report.each_image import each_image
from hf_dynvit.report.pictures import draw_extremes
from hf_dynvit.report.plots import drawn
from hf_dynvit.report.publish import EXTREMES
from hf_dynvit.report.run_results import evaluate, model_facts
from hf_dynvit.settings import parse_settings


@dataclass
class EvaluateArguments:
    """What to measure, on what, and where to write it."""

    model: str | None = field(default=None, metadata={"help": "the model: folder or Hub id"})
    budget: float | None = field(
        default=None,
        metadata={
            "help": "a budget of the model's table, or between two of it, to decide at; default: the model's own"
        },
    )
    dense: str | None = field(default=None, metadata={"help": "a dense ViT to compare the accuracy with"})
    json: str | None = field(default=None, metadata={"help": "file to write"})
    csv: str | None = field(
        default=None, metadata={"help": "file to write with a row for each image: label, prediction, cost, looks"}
    )
    card: bool = field(
        default=False,
        metadata={
            "help": "write the model card in the model's folder anew, in place of the one there, with accuracy, cost and times from "
            "here, and decisions.png, which shows some of the images"
        },
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "to time; 0: no timing"})
    eval_batch_size: int = field(default=32, metadata={"help": "batch of the accuracy, which it does not change"})
    dtype: str = field(default="float32", metadata={"help": f"one of {list(DTYPES)}"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto: CUDA where there is one"})
    seed: int = field(
        default=0,
        metadata={"help": "which images are timed, are used of more than max_samples, and are held out of train"},
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "use at most so many images; max_eval_samples says the same"}
    )
    num_workers: int = field(default=0, metadata={"help": "processes that load images"})
    seconds: float = field(default=20.0, metadata={"help": "time for the rounds of one batch size"})
    rounds: int | None = field(default=None, metadata={"help": "number of rounds instead of seconds"})
    compile: bool = field(
        default=True, metadata={"help": "also compile the dense model, as report.py demands of what it publishes"}
    )
    runtimes: list[str] = field(
        default_factory=list, metadata={"help": f"to run the dense model in as well, of {list(RUNTIMES)}"}
    )
    runtime_images: int = field(default=200, metadata={"help": "images that the accuracy of runtimes is measured on"})
    per_image: int = field(
        default=0, metadata={"help": "images whose cost is set beside difficulty and beside equal costs; 0: none"}
    )

    def __post_init__(self):
        if not self.model or not self.json:
            raise ValueError(f"--model and --json are needed, got {self.model!r} and {self.json!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        for name, file in (("json", self.json), ("csv", self.csv)):
            if file is not None and not Path(file).absolute().parent.is_dir():
                raise FileNotFoundError(f"there is no folder for {file!r}")
            if file is not None and Path(file).is_dir():
                raise ValueError(f"{name} must be a file to write, {file!r} is a folder")
        if self.csv and Path(self.csv).absolute() == Path(self.json).absolute():
            raise ValueError(f"csv and json would be the same file, {self.csv!r}")
        if self.card and self.budget is not None:
            raise ValueError(
                f"a card is of the budget that a model is saved at, and --budget {self.budget} is for this run: leave one of them out"
            )
        if not self.seconds > 0 or (self.rounds is not None and self.rounds < 1):
            raise ValueError(f"seconds must be positive and rounds at least 1, got {self.seconds} and {self.rounds}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, got {self.max_samples}")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        check_runtimes(self.runtimes)
        if self.runtime_images < 1:
            raise ValueError(f"runtime_images must be at least 1, got {self.runtime_images}")
        if self.per_image < 0:
            raise ValueError(f"per_image must be at least 0, got {self.per_image}")
        self.batch_sizes = [size for size in self.batch_sizes if size]
        if self.card and self.batch_sizes and not self.compile:
            raise ValueError(
                "a card has times against all dense models: leave out --no-compile, or give --batch_sizes 0"
            )
        if any(size < 1 for size in (*self.batch_sizes, self.eval_batch_size)):
            raise ValueError(f"batch sizes must be at least 1, got {self.batch_sizes} and {self.eval_batch_size}")


def main(argv=None):
    """Measure; returns what it wrote to the JSON file."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, EvaluateArguments, ImageArguments)
    if args.max_samples is not None:
        data_args.max_eval_samples = args.max_samples
    if args.card:
        check_card(args.model)
    paths = [args.model] + ([args.dense] if args.dense else [])
    entrants = open_models(paths, data_args, args.device, DTYPES[args.dtype], seed=args.seed)
    entrant, images = entrants[0], entrants[0].images
    crops = [crop_of(json.loads(one.processor)) for one in entrants]
    if len(set(crops)) > 1:
        raise ValueError(
            f"{args.model} and {args.dense} look at other parts of images, {crops}: give --crop_pct for both"
        )
    if args.card and crops[0] != crop_of(json.loads(AutoImageProcessor.from_pretrained(args.model).to_json_string())):
        raise ValueError(
            f"a card is of the image processor that is saved with the model, and --crop_pct {data_args.crop_pct} is another"
        )
    if args.dense:
        other = entrants[1].model.config
        has = [name for name in ("gates", "layer_mask", "resolution", "cascade", "last_layer") if getattr(other, name)]
        if has:
            raise ValueError(f"dense must be a plain ViT, and {args.dense} has {has}")
    table = entrant.model.config.budget_table()
    if args.budget is not None and table is None:
        raise ValueError(
            f"--budget {args.budget} is for a model with a table of budgets (recipes/calibrate.py --budgets), and "
            f"{args.model} has none"
        )
    if args.budget is not None:
        entrant.model.set_budget(args.budget)
    if args.per_image:
        check_decides(entrant.model)
    if args.batch_sizes and max(args.batch_sizes) > len(images):
        raise ValueError(f"a batch of {max(args.batch_sizes)} needs as many images, there are {len(images)}")
    if args.compile and args.batch_sizes:
        check_compiler(args.device)
    compiled = bool(args.compile and args.batch_sizes) and args.device == "cpu" and kernels_at_hand(DTYPES[args.dtype])
    if args.device == "cpu" and can_prepack():
        entrant.model.prepack(kernels=compiled)
    mixed = shuffled(entrant, args.seed)
    # Before anything is measured: what cannot be exported fails here.
    exported = Exported(entrant.vit, args.runtimes, first_images(mixed)) if args.runtimes else None
    found = accuracy(entrant, args)
    if args.csv:
        each_image(found, images, entrant.model.config.id2label).to_csv(args.csv, index=False)
    held_out = data_args.validation_fraction and data_args.validation_split == data_args.train_split
    results = Evaluation(
        model=args.model,
        **model_facts(entrant.model),
        budget=entrant.model.config.budget,
        budgets=None if table is None else [budget for budget, _ in table],
        dataset=data_args.name(),
        split=("held out of " if held_out else "") + data_args.validation_split,
        split_files=data_args.files_of(data_args.validation_split),
        images=len(images),
        crop_pct=crops[0],
        **vars(found.scores),
        dense=accuracy(entrants[1], args).scores if args.dense else None,
        dense_model=args.dense,
        usage=found.usage,
        batch_size=args.eval_batch_size,
        **measured_on(args.device, args.dtype, args.seed),
    )
    write(args.json, results)
    top5 = "" if results.accuracy_top5 is None else f", top-5 {100 * results.accuracy_top5:.2f}"
    print(
        f"top-1 {100 * results.accuracy:.2f}{top5} at a mean cost of {results.cost:.3f}, on "
        f"{results.images} images: {args.json}"
    )
    if entrant.model.config.cascade is not None:
        results.looks = measure_looks(entrant.model, DataLoader(images, args.eval_batch_size))
        write(args.json, results)
    if exported:  # not on the images that int8 was calibrated on
        unseen = Subset(mixed.images, range(min(CALIBRATION_IMAGES, len(images) // 2), len(images)))
        measured = exported.accuracy(unseen, args.runtime_images, entrant.model.dtype)
        results.runtimes = {name: Runtime(**runtime) for name, runtime in measured.items()}
        write(args.json, results)
    if args.per_image:
        costs = per_image(entrant, args.per_image, args.seed, args.eval_batch_size)
        results.per_image = costs.summary()
        write(args.json, results)
        drawn(draw_extremes, entrant, costs, Path(args.json).with_name(*EXTREMES))
    program = program_of(entrant.model) if args.compile and args.batch_sizes else None
    for batch_size in args.batch_sizes:
        torch.compiler.reset()
        how = {"compiled": args.compile, "exported": exported, "program": program}
        speed = time_batches(mixed, batch_size, args.seconds, args.rounds, **how)
        results.throughput.append(speed)
        write(args.json, results)  # an interrupted run keeps what it has
        print(
            f"batch {batch_size}: dense {speed.dense_images_per_second:.1f} images/s ({speed.fastest}), packed "
            f"{speed.packed_images_per_second:.1f} images/s, {speed.speedup:.2f} times as fast"
            + (f", compiled {speed.program_speedup:.2f} times" if program else "")
        )
    if args.card:
        describe_evaluation(entrant, results, args.model, data_args.is_on_hub())
    return results.to_json()


def accuracy(entrant, args):
    """`Evaluated` of a model on all of its images."""
    loader = DataLoader(entrant.images, args.eval_batch_size, num_workers=args.num_workers)
    return evaluate(entrant.model, loader, entrant.name)


def check_compiler(device):
    """Refuse before any work what would fail after it."""
    try:
        torch.compile(torch.nn.Linear(2, 2).to(device))(torch.zeros(1, 2, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        raise RuntimeError(
            f"nothing can be compiled on {device}; add --no-compile, or with --card --batch_sizes 0 ({error})"
        ) from error


if __name__ == "__main__":
    main()
