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
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.benchmark_models import Entrant, time_batches
from hf_dynvit.card_tables import markdown_table
from hf_dynvit.cost import dense_macs
from hf_dynvit.digits import digit_canvases
from hf_dynvit.environment import measured_on
from hf_dynvit.model_card import write_model_card
from hf_dynvit.prepack import can_prepack
from hf_dynvit.preset_gates import preset_gates
from hf_dynvit.settings import parse_settings
from hf_dynvit.visualize import show_decisions


SIZE, PATCH = 96, 8  # pixels
BATCH = 32
TIMED_BATCHES = (1, 32)
EASY, HARD = 0.25, 0.75  # difficulties up to and from which a canvas counts as such
PICTURE = "decisions.png"


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
    results = measure(dense, trainer, validation, args)
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


def measure(dense, trainer, validation, args):
    """Everything that results.json holds."""
    model = trainer.model.eval()
    config = model.config
    gmacs = dense_macs(config, (SIZE // PATCH) ** 2 + 1, config.num_labels) / 1e9
    trainer.eval_usage.reset()
    measured, hits, costs = predict(trainer, validation)
    usage = trainer.eval_usage.per_layer()
    ungated = DynViTTrainer(model=DynViTForImageClassification.from_vit(dense), args=trainer.args)
    difficulty = validation.difficulty
    groups = {"easy": difficulty <= EASY, "hard": difficulty >= HARD}
    if can_prepack():
        model.prepack()
    entrant = Entrant("demo", model, dense, validation, "")
    return {
        "kind": "demo",
        "gates": config.gates,
        "budget": config.budget,
        "dataset": "handwritten digits on cluttered canvases",
        "split": "validation",
        "images": len(validation),
        **measured,
        "gmacs": measured["cost"] * gmacs,
        "dense": predict(ungated, validation)[0] | {"gmacs": gmacs},
        "by_difficulty": {
            name: {
                "images": int(group.sum()),
                "accuracy": hits[group].mean().item(),
                "cost": costs[group].mean().item(),
            }
            for name, group in groups.items()
            if group.any()
        },
        "usage": usage,
        "batch_size": BATCH,
        "throughput": [timing(entrant, batch, args.seconds) for batch in TIMED_BATCHES],
        **measured_on(model.device, model.dtype, args.seed),
    }


def predict(trainer, validation):
    """Accuracy, top-5 accuracy and mean cost; per canvas whether it is read correctly, and its cost."""
    out = trainer.predict(validation)
    logits, costs = (torch.from_numpy(part) for part in out.predictions)
    measured = {name: out.metrics[f"test_{name}"] for name in ("accuracy", "accuracy_top5", "cost")}
    return measured, (logits.argmax(-1) == validation.labels).float(), costs


def timing(entrant, batch, seconds):
    """Time per image of the packed model and of the dense one (the faster of eager and SDPA), taken in turns."""
    (row,) = time_batches([entrant], batch, seconds, rounds=None, compiled=False)
    return {
        "batch_size": batch,
        "dense_ms_per_image": min(row["dense_ms"].values()) / batch,
        "packed_ms_per_image": row["packed_ms"] / batch,
        "dense_images_per_second": row["dense_images_per_s"],
        "packed_images_per_second": row["packed_images_per_s"],
        **row,
    }


def write(model, validation, results, folder):
    """The model with its image processor, results.json, the picture and the card."""
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    by_difficulty = validation.difficulty.argsort(stable=True)
    count = min(3, len(validation) // 2)
    shown = [*by_difficulty[:count].tolist(), *by_difficulty[-count:].tolist()]
    titles = [
        f"{'easy' if place < count else 'hard'}: {validation.labels[index]}" for place, index in enumerate(shown)
    ]
    images = torch.stack([validation[index]["pixel_values"] for index in shown])
    show_decisions(model, images, folder / PICTURE, titles=titles, layers=range(model.config.num_hidden_layers))
    write_model_card(
        model, results, folder, pictures={PICTURE: "What is computed of three easy and three hard canvases"}
    )


def table(results):
    """Dense and packed side by side, as Markdown."""
    headings, dense, packed, ratio = ["", "top-1", "million MACs"], ["dense"], ["packed"], ["dense / packed"]
    for row, values in ((dense, results["dense"]), (packed, results)):
        row += [f"{values['accuracy']:.1%}", f"{1e3 * values['gmacs']:.1f}"]
    ratio += ["", f"{results['dense']['gmacs'] / results['gmacs']:.2f}"]
    for timed in results["throughput"]:
        headings.append(f"ms per image, batch {timed['batch_size']}")
        dense.append(f"{timed['dense_ms_per_image']:.2f}")
        packed.append(f"{timed['packed_ms_per_image']:.2f}")
        ratio.append(f"{timed['speedup']:.2f} x as fast")
    return markdown_table(headings, [dense, packed, ratio])


def difficulty_sentence(results):
    """What easy and hard canvases cost."""
    parts = [
        f"{name} canvases: top-1 {group['accuracy']:.1%} at cost {group['cost']:.2f}"
        for name, group in results["by_difficulty"].items()
    ]
    return "; ".join(parts)


if __name__ == "__main__":
    main()
