"""What the library does, in minutes and offline: python recipes/demo.py [--output DIR] [--budget 0.15] (or: make demo)

Trains a small ViT on real handwritten digits that lie on canvases with no clutter to very much, puts AdaViT's patch gates
on it, teaches them to spend 15 %, and compares: accuracy, multiply-accumulates, measured time, and a picture of what
is computed.

Time and numbers to expect: what your own run prints; nothing here is typed by hand. A slower machine takes fewer steps.
"""

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.data import digit_canvases
from hf_dynvit.measure.files import read_json
from hf_dynvit.report.demo import (
    PICTURE,
    TIMED_BATCHES,
    dense_sentence,
    difficulty_sentence,
    measure,
    plan,
    seconds_per_step,
    summary,
    write,
)
from hf_dynvit.settings import parse_settings


SIZE, PATCH = 96, 8  # pixels
CANVASES = {"scale": 2, "step": PATCH, "clutter": 40, "contrast": 0.7}  # a digit fills 2 x 2 patches
WIDTH = 192  # a narrower ViT spends its time on calls, not on products: skipping would save nothing in a batch of 1
BATCH = 8
CALIBRATION = 128  # canvases
CALIBRATIONS = 12  # times that they are looked at, at most
# The first can see what is empty; the second, after two layers have compared the patches, what is clutter.
GATES = [{"gate": "patch", "on": "block", "drop": True, "layers": [0, 2]}]


@dataclass
class DemoArguments:
    """How large the demo is and where it writes."""

    output: str = field(default="outputs/demo", metadata={"help": "folder for model, card, results and picture"})
    minutes: float = field(default=3.0, metadata={"help": "time to stay within, by fewer steps on a slow machine"})
    steps: int | None = field(
        default=None,
        metadata={
            "help": f"steps of {BATCH} canvases, for the ViT and for its gates each; none: as many as fit into `minutes`, "
            "found by timing a few"
        },
    )
    images: int | None = field(
        default=None, metadata={"help": "canvases to train on; none: as many as the steps take, each seen once"}
    )
    validation: int = field(default=1000, metadata={"help": "canvases to validate on"})
    budget: float = field(default=0.15, metadata={"help": "mean cost to aim at, relative to the dense ViT"})
    seconds: float = field(default=8.0, metadata={"help": "time for measuring the speed at one batch size"})
    seed: int = field(default=0, metadata={"help": "of canvases, weights and order"})

    def __post_init__(self):
        for name in ("images", "validation", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validation < max(TIMED_BATCHES):
            raise ValueError(f"validation must be at least {max(TIMED_BATCHES)} to be timed, got {self.validation}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be in (0, 1], got {self.budget}")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        refuse_other_runs(Path(self.output))


def main(argv=None):
    """Run the demo; returns the content of results.json."""
    start = time.perf_counter()
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, DemoArguments)
    folder = Path(args.output)
    print(
        f"A ViT that computes only what an image needs: one is trained here, then taught to skip. {folder} gets all of it."
    )
    if args.steps is None:
        args = affordable(args, start)
    set_seed(args.seed)
    images = args.images or args.steps * BATCH
    print(f"\nDrawing {images} canvases to train on and {args.validation} to validate", flush=True)
    train, validation = digit_canvases(images, args.validation, SIZE, **CANVASES, seed=args.seed)

    print("\n1. A dense ViT, trained with the ordinary Trainer", flush=True)
    dense = train_dense(train, args)

    print(
        f"\n2. The same ViT with AdaViT's patch gates, which learn to spend {args.budget:.0%} of its cost", flush=True
    )
    trainer = gates_trainer(dense, train, args)
    trainer.train()

    print("\n3. Both, measured on canvases of digits they have never seen", flush=True)
    results = measure(dense, trainer, validation, args.seconds, args.seed)
    write(trainer.model, validation, results, folder)
    print(f"\n{summary(results)}\n\n{dense_sentence(results)}\n{difficulty_sentence(results)}\n")
    for file in (PICTURE, "README.md", "results.json", "model.safetensors"):
        print(folder / file)
    return results.to_json()


def refuse_other_runs(folder):
    """A folder with a model that is not this demo's is left alone."""
    results = folder / "results.json"
    is_demo = results.is_file() and read_json(results).get("kind") == "demo"
    if (folder / "model.safetensors").exists() and not is_demo:
        raise ValueError(f"output {str(folder)!r} holds another model: give another folder")


def affordable(args, start):
    """The arguments with the number of steps that this machine has time for; `start`: when the demo began."""
    print("\nTiming a few training steps", flush=True)
    few = replace(args, steps=1)
    (canvases, _), vit = digit_canvases(BATCH, 1, SIZE, **CANVASES, seed=args.seed), new_vit()
    inputs = default_collate([canvases[index] for index in range(BATCH)])
    ungated = DynViTForImageClassification.from_vit(vit)
    dense = DynViTTrainer(model=ungated, args=settings(DynViTTrainingArguments, few))
    took = [seconds_per_step(trainer, inputs) for trainer in (dense, gates_trainer(vit, canvases, few))]
    left = 60 * args.minutes - (time.perf_counter() - start) - args.seconds * len(TIMED_BATCHES)
    chosen = plan(*took, left, 2 * args.validation + CALIBRATION * CALIBRATIONS * args.budget, BATCH)
    print(chosen.sentence(60 * args.minutes, BATCH), flush=True)
    return replace(args, steps=chosen.steps)


def settings(kind, args, **fields):
    """Training arguments that both trainings share."""
    return kind(
        output_dir=args.output,
        max_steps=args.steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=32,
        adam_beta2=0.99,  # few steps: the default's memory is longer than the training
        warmup_steps=min(20, args.steps // 5),
        weight_decay=0.01,
        logging_steps=max(1, args.steps // 4),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        **fields,
    )


def new_vit():
    """A small `ViTForImageClassification` with random weights."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=2 * WIDTH,
        num_labels=10,
        id2label={digit: str(digit) for digit in range(10)},
        initializer_range=0.09,  # so small a model learns much faster than from the default 0.02
    )
    return ViTForImageClassification(config)


def train_dense(train, args):
    """A `ViTForImageClassification` that has learned to read the digits."""
    model = new_vit()
    Trainer(model, settings(TrainingArguments, args, learning_rate=7e-4), train_dataset=train).train()
    return model.eval()


def gates_trainer(dense, train, args):
    """A trainer of the ViT with gates, open at first, the dense ViT being the teacher."""
    return DynViTTrainer(
        model=DynViTForImageClassification.from_vit(dense, gates=GATES, budget=args.budget),
        args=settings(
            DynViTTrainingArguments,
            args,
            learning_rate=5e-4,
            gate_learning_rate=4e-3,
            budget_ramp=0.4,
            calibration_images=CALIBRATION,
        ),
        teacher=dense,
        train_dataset=train,
        calibration_dataset=train,
    )


if __name__ == "__main__":
    main()
