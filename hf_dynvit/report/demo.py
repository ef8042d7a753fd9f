"""What the demo (recipes/demo.py) measures of its two models, how it is written down, and how many steps it can afford."""

from typing import NamedTuple

import torch
from transformers import ViTImageProcessorPil

from ..measure.dense import OURS
from ..measure.provenance import measured_on
from ..measure.timing import interleaved_medians
from ..measure.trained_models import Entrant, time_batches
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from ..training.trainer import DynViTTrainer
from ..training.training_step import TrainingStep
from . import schema
from .markdown import table
from .model_card import write_model_card
from .pictures import show_decisions
from .results import Demo
from .run_results import model_facts, scores


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
    """The `Demo`.

    Args:
        dense: the `ViTForImageClassification` that the gates were put on.
        trainer: of the model with gates, trained.
        validation: canvases (`digits.digit_canvases`).
        seconds: time for measuring the speed at one batch size.
        seed: of the run, to be noted.
    """
    model = trainer.model.eval()
    trainer.eval_usage.reset()
    measured, hits, costs = predict(trainer, validation)
    usage = trainer.eval_usage.per_layer()
    ungated = DynViTTrainer(model=DynViTForImageClassification.from_vit(dense), args=trainer.args)
    groups = {"easy": validation.difficulty <= EASY, "hard": validation.difficulty >= HARD}
    if can_prepack():
        model.prepack()
    entrant = Entrant("demo", model, dense, validation, "")
    return Demo(
        model="demo",
        **model_facts(model),
        budget=model.config.budget,
        dataset="handwritten digits on cluttered canvases",
        split="validation",
        split_files=[],
        images=len(validation),
        **vars(measured),
        dense=predict(ungated, validation)[0],
        dense_model=None,
        by_difficulty={
            name: {
                "images": int(group.sum()),
                "accuracy": hits[group].mean().item(),
                "cost": costs[group].mean().item(),
            }
            for name, group in groups.items()
            if group.any()
        },
        usage=usage,
        batch_size=trainer.args.per_device_eval_batch_size,
        throughput=[
            # Compiling would take longer than the demo trains.
            time_batches(entrant, batch, seconds, compiled=False, different=different)
            for batch, different in TIMED_BATCHES.items()
        ],
        **measured_on(model.device, model.dtype, seed),
    )


def predict(trainer, validation):
    """`Scores`; per canvas whether it is read correctly, and its cost."""
    out = trainer.predict(validation)
    logits, costs = (torch.from_numpy(part) for part in out.predictions)
    found = scores(out.metrics, trainer.model, "test_")
    return found, (logits.argmax(-1) == validation.labels).float(), costs


def write(model, validation, results, folder):
    """The model with its image processor, results.json, the picture and the card."""
    side = model.config.image_size
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    schema.write(folder / "results.json", results)
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
        model, results.to_json(), folder, pictures={PICTURE: "What is computed of three easy and three hard canvases"}
    )


def summary(results):
    """Dense and packed side by side, as Markdown."""
    columns = {
        "": ["dense", "packed", "dense / packed"],
        "top-1": [f"{results.dense.accuracy:.1%}", f"{results.accuracy:.1%}", ""],
        "million MACs": [
            *(f"{1e3 * gmacs:.1f}" for gmacs in (results.dense.gmacs, results.gmacs)),
            f"{results.dense.gmacs / results.gmacs:.2f}",
        ],
    }
    for speed in results.throughput:
        columns[f"ms per image, batch {speed.batch_size}"] = [
            f"{speed.dense_ms[speed.fastest] / speed.batch_size:.2f}",
            f"{speed.packed_ms / speed.batch_size:.2f}",
            f"{speed.speedup:.2f} x as fast",
        ]
    return table(columns)


def dense_sentence(results):
    """Which dense model the packed one was compared with, and in what they are not equal."""
    fastest = [f"{DENSE[speed.fastest]} (batch {speed.batch_size})" for speed in results.throughput]
    return (
        f"Dense is the fastest of {len(DENSE)} ways to run it: {', '.join(fastest)}.\n"
        "The packed model has had two trainings, that of the dense one and that of its gates: the dense one was not tuned on."
    )


def difficulty_sentence(results):
    """What easy and hard canvases cost."""
    parts = [
        f"{name} canvases ({CLUTTER[name]}): top-1 {group['accuracy']:.1%} at cost {group['cost']:.2f}"
        for name, group in results.by_difficulty.items()
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
    return interleaved_medians({"step": lambda index: step.ordinary()}, MEASURED)["step"]
