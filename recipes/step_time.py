"""What skipping saves in training: python recipes/step_time.py --model VIT [--gates block] [--agents random ...]

Times whole training steps (forward, backward, optimizer) in turns in one run: of the dense ViT by the best of
transformers' attention kernels; of the packed model under random decisions of a given mean cost, policies included; and
with patch agents as a trainer takes them, the agents' choosing and learning included, by the best kernel as well.
"""

import copy
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import ViTForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure import interleaved_medians, measured_on
from hf_dynvit.measure.memory import peak_mib
from hf_dynvit.measure.random_decisions import draw_decisions, gate_entries, move
from hf_dynvit.measure.timing import rounds_within, with_progress
from hf_dynvit.model.configuration_dynvit import pair
from hf_dynvit.report import Step, StepTime, write
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.training_step import agent_calls, agent_rows, agent_steps


KERNELS = ("eager", "sdpa")


@dataclass
class StepArguments:
    """What to time."""

    model: str | None = field(default=None, metadata={"help": "a ViT: folder or Hub id"})
    gates: str = field(default="block", metadata={"help": 'kinds of gates joined by "+", or "none"'})
    cost: float = field(default=0.5, metadata={"help": "mean cost of the decisions"})
    agents: list[str] = field(
        default_factory=list, metadata={"help": "agents, each with options after a colon: 'agentvit-plus:hidden=0'"}
    )
    n_patch_desired: int | None = field(
        default=None, metadata={"help": "patches that the agents aim to keep; None: half of them"}
    )
    batch_size: int = field(default=64, metadata={"help": "images per step"})
    draws: int = field(default=4, metadata={"help": "sets of decisions, taken in turns"})
    autocast: bool = field(default=True, metadata={"help": "bfloat16 products, as the recipes train"})
    seconds: float = field(default=60.0, metadata={"help": "time for all rounds"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    json: str | None = field(default=None, metadata={"help": "file to write"})
    seed: int = field(default=0, metadata={"help": "of decisions and images"})

    def __post_init__(self):
        if not self.model:
            raise ValueError("give --model, the ViT whose training steps to time")
        if not 0 < self.cost <= 1:
            raise ValueError(f"cost must be in (0, 1], got {self.cost}")
        if self.gates == "none" and not self.agents:
            raise ValueError("give gates or agents whose training steps to time, got gates 'none' and no agents")
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder for {self.json!r}")


def main(argv=None):
    """Measure; returns what it wrote to the JSON file."""
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, StepArguments)
    torch.manual_seed(args.seed)
    vit = ViTForImageClassification.from_pretrained(args.model, dtype=torch.float32).to(args.device).train()
    config = vit.config
    images = torch.randn(args.batch_size, config.num_channels, *pair(config.image_size), device=args.device)
    labels = torch.arange(args.batch_size, device=args.device) % config.num_labels

    options = {"bf16": args.autocast, "use_cpu": args.device == "cpu", "seed": args.seed}
    batch = {"pixel_values": images, "labels": labels}
    agents = agent_steps(vit, batch, args.agents, KERNELS, n_patch_desired=args.n_patch_desired, **options)
    steps = {}
    for kernel in KERNELS:
        twin = copy.deepcopy(vit)
        twin.set_attn_implementation(kernel)
        steps[kernel] = Timed(twin, images, labels, args, lambda index: {})
    if args.gates != "none":
        steps["packed"] = gated_step(vit, images, labels, args)
    peaks = {name: peak_mib(partial(step, 0), args.device) for name, step in steps.items()}
    peaks |= {name: step.peak_mib() for name, step in agents.items()}
    calls = steps | agent_calls(agents)
    rounds = rounds_within(calls, args.seconds)
    ms = {name: 1e3 * s for name, s in interleaved_medians(with_progress(calls, rounds), rounds).items()}
    dense, leanest = min(KERNELS, key=ms.get), min(KERNELS, key=peaks.get)
    gates = [] if args.gates == "none" else [gate_results(steps["packed"], ms, peaks, dense, leanest, args)]
    results = StepTime(
        model=args.model,
        dense_ms={kernel: ms[kernel] for kernel in KERNELS},
        dense_peak_mib=peaks[leanest],
        leanest=leanest,
        steps=gates + [Step(**row) for row in agent_rows(agents, ms, peaks, ms[dense], peaks[leanest])],
        rounds=rounds,
        batch_size=args.batch_size,
        **measured_on(args.device, "bfloat16 autocast" if args.autocast else "float32", args.seed),
    )
    if args.json:
        write(args.json, results)
    for step in results.steps:
        print(
            f"{step.agent or 'packed'}, cost {step.cost:.3f}: {step.ms:.0f} ms, dense {ms[dense]:.0f} ms ({dense}): "
            f"{step.time_ratio:.2f} of the time, {step.memory_ratio:.2f} of the working memory"
        )
    return results.to_json()


def gated_step(vit, images, labels, args):
    """A step of the packed model under random decisions, all of which have run once."""
    model = DynViTForImageClassification.from_vit(vit, gates=gate_entries(args.gates, vit.config.num_hidden_layers))
    model.to(args.device).train()
    model.layout = "packed"
    generator = torch.Generator().manual_seed(args.seed)
    drawn = [draw_decisions(model, args.batch_size, args.cost, generator) for _ in range(args.draws)]
    draws = [move(decisions, args.device) for decisions in drawn]
    step = Timed(model, images, labels, args, lambda index: {"decisions": draws[index % len(draws)], "gating": "act"})
    for index in range(args.draws):
        step(index)  # 16-bit products on CPU compile a kernel per number of rows
    return step


def gate_results(step, ms, peaks, dense, leanest, args):
    with torch.no_grad():
        costs = [step.model(step.images, **step.options(index)).cost for index in range(args.draws)]
    return Step(
        gates=args.gates,
        cost=torch.cat(costs).mean().item(),
        ms=ms["packed"],
        peak_mib=peaks["packed"],
        time_ratio=ms["packed"] / ms[dense],
        memory_ratio=peaks["packed"] / peaks[leanest],
    )


class Timed:
    """One training step of a model, as a callable that takes the number of the round."""

    def __init__(self, model, images, labels, args, options):
        self.model, self.images, self.labels, self.args, self.options = model, images, labels, args, options
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def __call__(self, index):
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.args.autocast):
            out = self.model(self.images, labels=self.labels, **self.options(index))
        log_probs = [d.log_prob for d in getattr(out, "decisions", None) or () if d.log_prob is not None]
        loss = out.loss - sum(log_prob.mean() for log_prob in log_probs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


if __name__ == "__main__":
    main()
