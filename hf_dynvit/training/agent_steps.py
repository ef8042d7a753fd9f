"""Training steps with patch agents, set up to be timed in turns with dense ones, and what came of it as rows."""

import tempfile

import torch

from ..agents.shelf import parse_variant
from ..model.modeling_dynvit import DynViTForImageClassification
from .arguments import DynViTTrainingArguments
from .trainer import DynViTTrainer
from .training_step import TrainingStep


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
    """What is to be timed: (agent, kernel, kind of step) -> function of the round's number."""
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
