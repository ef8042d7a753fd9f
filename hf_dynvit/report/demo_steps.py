"""How many training steps the demo (recipes/demo.py) can afford on this machine, from the time that a few of them take."""

import statistics
import time
from typing import NamedTuple

from ..training.training_step import TrainingStep


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
