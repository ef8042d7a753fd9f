"""How long training took without its evaluations, and what these found."""

from time import perf_counter

import torch
from transformers import TrainerCallback


class TrainingClock(TrainerCallback):
    """Add it last: it counts what other callbacks do at the end of a step.

    Attributes:
        seconds: of training so far. points: [{"step", "seconds", "accuracy", "loss"}], one for each evaluation.
    """

    def __init__(self):
        self.seconds, self.points, self._running = 0.0, [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self._running = perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self._stop(args)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._running is None and state.global_step:
            point = {"step": state.global_step, "seconds": self.seconds}
            self.points.append(point | {"accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"]})
            self._running = perf_counter()

    def on_predict(self, args, state, control, **kwargs):
        """The evaluation on chosen patches is over, which comes after the one on all."""
        if self._running is not None:
            self._running = perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self._stop(args)

    def _stop(self, args):
        if self._running is None:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds += perf_counter() - self._running
        self._running = None
