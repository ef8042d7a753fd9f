"""What the library does, in minutes and offline: python recipes/demo.py [--output DIR] [--budget 0.3] (or: make demo)

Trains a small ViT on real handwritten digits that lie on cluttered canvases, puts AdaViT's gates on it, teaches them to
spend 30 %, and compares: accuracy, multiply-accumulates, measured time, and a picture of what is computed.

Time and numbers to expect: the table that your own run prints; nothing here is typed by hand.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path


# This folder holds an evaluate.py, which must not hide the library of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.demo_results import PICTURE, TIMED_BATCHES, difficulty_sentence, measure, table, write
from hf_dynvit.digits import digit_canvases
from hf_dynvit.preset_gates import preset_gates
from hf_dynvit.settings import parse_settings


SIZE, PATCH = 96, 8  # pixels
BATCH = 32


@dataclass
class DemoArguments:
    """How large the demo is and where it writes."""

    output: str = field(default="outputs/demo", metadata={"help": "folder for model, card, results and picture"})
    images: int = field(default=6400, metadata={"help": "canvases to train on"})
    validation: int = field(default=1000, metadata={"help": "canvases to validate on"})
    steps: int = field(
        default=220, metadata={"help": f"steps of {BATCH} canvases, for the ViT and for its gates each"}
    )
    budget: float = field(default=0.3, metadata={"help": "mean cost to aim at, relative to the dense ViT"})
    seconds: float = field(default=8.0, metadata={"help": "time for measuring the speed at one batch size"})
    seed: int = field(default=0, metadata={"help": "of canvases, weights and order"})

    def __post_init__(self):
        for name in ("images", "validation", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validation < max(TIMED_BATCHES):
            raise ValueError(f"validation must be at least {max(TIMED_BATCHES)} to be timed, got {self.validation}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be in (0, 1], got {self.budget}")
        refuse_other_runs(Path(self.output))


def main(argv=None):
    """Run the demo; returns the content of results.json."""
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, DemoArguments)
    folder = Path(args.output)
    set_seed(args.seed)
    print("Drawing canvases", flush=True)
    train, validation = digit_canvases(args.images, args.validation, size=SIZE, seed=args.seed)

    print("\n1. A dense ViT, trained with the ordinary Trainer", flush=True)
    dense = train_dense(train, args)

    print(f"\n2. The same ViT with AdaViT's gates, taught to spend {args.budget:.0%}", flush=True)
    trainer = train_gates(dense, train, args)

    print("\n3. Both, measured on canvases of digits they have never seen", flush=True)
    results = measure(dense, trainer, validation, args.seconds, args.seed)
    write(trainer.model, validation, results, folder)
    print(f"\n{table(results)}\n\n{difficulty_sentence(results)}\n")
    for file in ("README.md", "results.json", PICTURE, "model.safetensors"):
        print(folder / file)
    return results


def refuse_other_runs(folder):
    """A folder with a model that is not this demo's is left alone."""
    results = folder / "results.json"
    is_demo = results.is_file() and json.loads(results.read_text()).get("kind") == "demo"
    if (folder / "model.safetensors").exists() and not is_demo:
        raise ValueError(f"output {str(folder)!r} holds another model: give another folder")


def settings(kind, args, **fields):
    """Training arguments that both trainings share."""
    return kind(
        output_dir=args.output,
        max_steps=args.steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
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


def train_dense(train, args):
    """A small `ViTForImageClassification` that has learned to read the digits."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=192,
        num_labels=10,
        id2label={digit: str(digit) for digit in range(10)},
        initializer_range=0.08,  # so narrow a model learns much faster with larger weights than the default 0.02
    )
    model = ViTForImageClassification(config)
    Trainer(model, settings(TrainingArguments, args, learning_rate=1e-3), train_dataset=train).train()
    return model.eval()


def train_gates(dense, train, args):
    """A trainer that has put gates on the ViT and taught them, the dense ViT being the teacher."""
    # Clutter is new, and still to be forgotten, not merged into the digit: here the gates must learn what matters.
    own = {"patch": {"merge": False, "novelty": 0.0}, "sublayer": {"init_bias": 7.0}}
    gates = [{**entry, **own[entry["gate"]]} for entry in preset_gates("adavit", dense.config)]
    model = DynViTForImageClassification.from_vit(dense, gates=gates, budget=args.budget)
    trainer = DynViTTrainer(
        model=model,
        args=settings(DynViTTrainingArguments, args, learning_rate=5e-4, gate_learning_rate=2e-2, budget_ramp=0.4),
        teacher=dense,
        train_dataset=train,
        calibration_dataset=train,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
