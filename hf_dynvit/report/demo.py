"""What the demo (recipes/demo.py) measures of its two models, how it is written down, and how many steps it can afford."""

import statistics
import time
from typing import NamedTuple

import torch
from transformers import ViTImageProcessorPil

from ..measure.dense import OURS
from ..measure.files import write_json
from ..measure.provenance import measured_on
from ..measure.trained_models import Entrant, time_batches
from ..model.cost import dense_macs
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from ..training.trainer import DynViTTrainer
from ..training.training_step import TrainingStep
from .card_tables import markdown_table
from .model_card import write_model_card
from .pictures import show_decisions


TIMED_BATCHES = {1: 16, 32: 4}  # batch size -> how many different batches: single images differ most in cost
DENSE = {
    "eager": "transformers, eager",
    "sdpa": "transformers, SDPA",
    OURS: "hf_dynvit without gates, prepacked",
}
EASY, HARD = 0.25, 0.75  # difficulties up to and from which a canvas counts as such
CLUTTER = {"easy": "little clutter", "hard": "much clutter"}
PICTURE = "decisions.png"


def measure(dense, trainer, validation, seconds, seed):
    """Everything that results.json holds.

    Args:
        dense: the `ViTForImageClassification` that the gates were put on.
        trainer: of the model with gates, trained.
        validation: canvases (`digits.digit_canvases`).
        seconds: time for measuring the speed at one batch size.
        seed: of the run, to be noted.
    """
    model = trainer.model.eval()
    config = model.config
    gmacs = dense_macs(config, (config.image_size // config.patch_size) ** 2 + 1, config.num_labels) / 1e9
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
        "batch_size": trainer.args.per_device_eval_batch_size,
        "throughput": [timing(entrant, batch, seconds) for batch in TIMED_BATCHES],
        **measured_on(model.device, model.dtype, seed),
    }


def predict(trainer, validation):
    """Accuracy, top-5 accuracy and mean cost; per canvas whether it is read correctly, and its cost."""
    out = trainer.predict(validation)
    logits, costs = (torch.from_numpy(part) for part in out.predictions)
    measured = {name: out.metrics[f"test_{name}"] for name in ("accuracy", "accuracy_top5", "cost")}
    return measured, (logits.argmax(-1) == validation.labels).float(), costs


def timing(entrant, batch, seconds):
    """Time per image of the packed model and of the fastest dense one, taken in turns on the same images.

    Args:
        entrant: a `benchmark_models.Entrant`.
        batch: images in a forward. seconds: time for all of it.
    """
    # Compiling would take longer than the demo trains.
    (row,) = time_batches(
        [entrant], batch, seconds, rounds=None, compiled=False, different=TIMED_BATCHES.get(batch, 4)
    )
    fastest = min(row["dense_ms"], key=row["dense_ms"].get)
    return {
        "batch_size": batch,
        "dense_fastest": fastest,
        "dense_ms_per_image": row["dense_ms"][fastest] / batch,
        "packed_ms_per_image": row["packed_ms"] / batch,
        "dense_images_per_second": row["dense_images_per_s"],
        "packed_images_per_second": row["packed_images_per_s"],
        **row,
    }


def write(model, validation, results, folder):
    """The model with its image processor, results.json, the picture and the card."""
    side = model.config.image_size
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    write_json(folder / "results.json", results)
    by_difficulty = validation.difficulty.argsort(stable=True)
    count = min(3, len(validation) // 2)
    shown = [*by_difficulty[:count].tolist(), *by_difficulty[-count:].tolist()]
    images = torch.stack([validation[index]["pixel_values"] for index in shown])
    with torch.inference_mode():
        read = model(images.to(model.device)).logits.argmax(-1).tolist()
    titles = [
        f"{'easy' if place < count else 'hard'}: {validation.labels[index]}, read as {read[place]}"
        for place, index in enumerate(shown)
    ]
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


def dense_sentence(results):
    """Which dense model the packed one was compared with, and in what they are not equal."""
    fastest = [f"{DENSE[timed['dense_fastest']]} (batch {timed['batch_size']})" for timed in results["throughput"]]
    return (
        f"Dense is the fastest of {len(DENSE)} ways to run it: {', '.join(fastest)}.\n"
        "The packed model has had two trainings, that of the dense one and that of its gates: the dense one was not tuned on."
    )


def difficulty_sentence(results):
    """What easy and hard canvases cost."""
    parts = [
        f"{name} canvases ({CLUTTER[name]}): top-1 {group['accuracy']:.1%} at cost {group['cost']:.2f}"
        for name, group in results["by_difficulty"].items()
    ]
    return "; ".join(parts)


LEAST, MOST = 120, 400  # steps: fewer teach too little to show anything, more change little
MEASURED = 3
FORWARD = 1 / 3  # of a training step: the backward pass costs two forwards


class Plan(NamedTuple):
    """How many steps both trainings get, and the seconds that a step of the ViT and one of its gates take here."""

    steps: int
    dense_seconds: float
    gates_seconds: float

    def sentence(self, seconds, batch):
        """What was chosen and why, for the reader of the output; `seconds` is the time to stay within."""
        reason = {
            MOST: "the most that the demo takes",
            LEAST: f"the least that teaches anything, even if it takes longer than {seconds:.0f} s",
        }.get(self.steps, f"what fits into {seconds:.0f} s with all the rest")
        return (
            f"A step of {batch} canvases takes {self.dense_seconds:.2f} s for the ViT and {self.gates_seconds:.2f} s for "
            f"its gates: {self.steps} steps for each, {reason} (the same run again: --steps {self.steps})"
        )


def plan(dense_seconds, gates_seconds, seconds, forwards, batch):
    """The `Plan` that stays within a time.

    Args:
        dense_seconds, gates_seconds: of a training step of either kind.
        seconds: left for the trainings and the forwards after them.
        forwards: images to evaluate and calibrate on after the trainings.
        batch: images of a step.
    """
    after = FORWARD * dense_seconds * forwards / batch
    steps = int((seconds - after) / (dense_seconds + gates_seconds))
    return Plan(max(LEAST, min(MOST, steps)), dense_seconds, gates_seconds)


def seconds_per_step(trainer, inputs):
    """Median seconds of a few training steps of a `DynViTTrainer` on a batch, after one to warm up; its model is used up."""
    step = TrainingStep(trainer, inputs)
    step.ordinary()
    taken = []
    for _ in range(MEASURED):
        start = time.perf_counter()
        step.ordinary()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
