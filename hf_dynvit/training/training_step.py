"""Timing of training: a step on one batch, steps of patch agents in turns with dense ones, a clock for whole runs."""

import tempfile

import torch
from transformers import TrainerCallback

from ..agents.shelf import parse_variant
from ..measure.memory import peak_mib
from ..measure.timing import seconds_of_work
from ..model.modeling_dynvit import DynViTForImageClassification
from .arguments import DynViTTrainingArguments
from .trainer import DynViTTrainer


LATE = 10**6  # learning rounds into the training: silent epochs are over, and hardly any choice is left to chance


class TrainingStep:
    """One step of a `DynViTTrainer` on a batch: agent, forward, backward, update; the model and the agent do learn.

    Args:
        trainer: a `DynViTTrainer`; where its training stands is overwritten.
        inputs: {"pixel_values", "labels"}, a batch.

    Attributes:
        learn_every: of so many steps the agent learns in one; 1 where it never does, or always.
    """

    def __init__(self, trainer, inputs):
        self.trainer, self.agent = trainer, trainer.agent
        if not trainer.accelerator._models:
            trainer.accelerator.prepare_model(trainer.model)  # in the precision of the training
        self.inputs = {name: value.to(trainer.args.device) for name, value in inputs.items()}
        self.optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6)
        options = None if self.agent is None else self.agent.agent.options
        learns = getattr(options, "credit", None) != "none"
        self.learn_every = getattr(options, "learn_every", 1) if learns else 1
        replay = None if self.agent is None else getattr(self.agent.agent, "replay", None)
        while replay is not None and not replay.ready():
            self.learning()

    def ordinary(self, index=0):
        """A step in which the agent chooses and does not learn; `index` is for `interleaved_seconds`."""
        self._step(LATE * self.learn_every + 1)

    def learning(self, index=0):
        """A step in which the agent learns as well."""
        self._step(LATE * self.learn_every)

    def calls(self):
        """Kind of step -> function that takes one: "ordinary", and "learning" where that is another."""
        return {"ordinary": self.ordinary} | ({"learning": self.learning} if self.learn_every > 1 else {})

    def mean(self, values):
        """Mean of values of `calls` over the steps of a training, by how often each kind is taken."""
        learning = values.get("learning", values["ordinary"])
        return values["ordinary"] + (learning - values["ordinary"]) / self.learn_every

    def peak_mib(self):
        """MiB that a step holds at once in which the agent learns, beyond weights, optimiser states and the batch."""
        return peak_mib(self.learning, self.trainer.args.device)

    def _step(self, batch):
        if self.agent is not None:
            self.agent.epoch, self.agent.batches, self.agent.batch_in_epoch = LATE, batch, batch - 1
        self.trainer.model.train()
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.agent is not None:
            self.agent.on_step_end(self.trainer.args, self.trainer.state, self.trainer.control)


def agent_steps(vit, inputs, agents, kernels, **options):
    """A step for each agent with each of transformers' attention kernels.

    Args:
        vit: a `ViTForImageClassification`.
        inputs: {"pixel_values", "labels"}, the batch of all steps.
        agents: as `agents.parse_variant` takes them.
        options: of `DynViTTrainingArguments`.

    Returns:
        (agent, kernel) -> `TrainingStep`.

    Raises:
        ValueError: an agent, an option or a model that do not fit; all are checked before the first agent works.
    """
    if "none" in agents:
        raise ValueError(f"agents to time take patches away, 'none' is no agent; got {agents}")
    trainers = {}
    with tempfile.TemporaryDirectory() as folder:  # nothing is saved
        for agent in agents:
            for kernel in kernels:
                model = DynViTForImageClassification.from_vit(vit)
                model.set_attn_implementation(kernel)
                args = DynViTTrainingArguments(folder, report_to="none", **{**options, **parse_variant(agent)})
                trainers[agent, kernel] = DynViTTrainer(model, args)
    return {name: TrainingStep(trainer, inputs) for name, trainer in trainers.items()}


def agent_calls(steps):
    """Functions to be timed: (agent, kernel, kind of step) -> function of the round's number."""
    return {(*name, kind): call for name, step in steps.items() for kind, call in step.calls().items()}


def agent_rows(steps, ms, peaks, dense_ms, dense_peak):
    """A JSON-ready row for each agent, by its best kernel: the mean of its steps, as often as it learns in them.

    Args:
        steps: of `agent_steps`.
        ms: median milliseconds of `agent_calls`, by their keys. peaks: MiB of `steps`, by theirs.
        dense_ms, dense_peak: of a dense step.
    """
    rows = []
    for agent in dict.fromkeys(agent for agent, _ in steps):
        times = {}
        for kernel, step in ((kernel, step) for (name, kernel), step in steps.items() if name == agent):
            kinds = {kind: ms[agent, kernel, kind] for kind in step.calls()}
            times[kernel] = kinds | {"mean": step.mean(kinds)}
        kernel = min(times, key=lambda kernel: times[kernel]["mean"])
        step, mean, peak = steps[agent, kernel], times[kernel]["mean"], peaks[agent, kernel]
        report = step.agent.report()
        rows.append(
            {name: report[name] for name in ("n_patch_desired", "patches", "kept")}
            | {"agent": agent, "cost": torch.stack(step.trainer.step_costs).mean().item()}
            | {"learn_every": step.learn_every, "step_ms": times, "kernel": kernel, "ms": mean, "peak_mib": peak}
            | {"time_ratio": mean / dense_ms, "memory_ratio": peak / dense_peak}
        )
    return rows


class TrainingCost(TrainerCallback):
    """What the steps of a whole training cost, logged or not.

    Args:
        trainer: the `DynViTTrainer`.
    """

    def __init__(self, trainer):
        self.trainer, self.total, self.steps = trainer, 0.0, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.total = self.total + torch.stack(self.trainer.step_costs).mean()
        self.steps += 1

    def mean(self):
        """Mean cost of a step, relative to a dense one; None before the first."""
        return float(self.total / self.steps) if self.steps else None


class TrainingClock(TrainerCallback):
    """Add it last: it counts what other callbacks do at the end of a step.

    Attributes:
        seconds: of training so far (`seconds_of_work`). points: [{"step", "seconds", "accuracy", "loss"}], one for each evaluation.
    """

    def __init__(self):
        self.seconds, self.points, self._running = 0.0, [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self._running = seconds_of_work(args.device)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self._stop(args)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._running is None and state.global_step:
            point = {"step": state.global_step, "seconds": self.seconds}
            self.points.append(point | {"accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"]})
            self._running = seconds_of_work(args.device)

    def on_predict(self, args, state, control, **kwargs):
        """The evaluation on chosen patches is over, which comes after the one on all."""
        if self._running is not None:
            self._running = seconds_of_work(args.device)

    def on_train_end(self, args, state, control, **kwargs):
        self._stop(args)

    def _stop(self, args):
        if self._running is None:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds += seconds_of_work(args.device) - self._running
        self._running = None
