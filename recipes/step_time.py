"""What skipping saves in training: python recipes/step_time.py --model VIT [--gates block] [--cost 0.5] [--json FILE]

Times whole training steps (forward, backward, optimizer) in turns in one run: of the dense ViT by the best of
transformers' attention kernels, and of the packed model under random decisions of a given mean cost, policies included.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path


# This folder holds an evaluate.py, which must not hide the library of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import torch
from transformers import ViTForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.benchmark_decisions import draw_decisions, gate_entries, move
from hf_dynvit.benchmark_speed import rounds_within, with_progress
from hf_dynvit.environment import measured_on
from hf_dynvit.memory import peak_mib
from hf_dynvit.settings import parse_settings
from hf_dynvit.timing import interleaved_medians


@dataclass
class StepArguments:
    """What to time."""

    model: str | None = field(default=None, metadata={"help": "a ViT: folder or Hub id"})
    gates: str = field(default="block", metadata={"help": 'kinds of gates joined by "+"'})
    cost: float = field(default=0.5, metadata={"help": "mean cost of the decisions"})
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


def main(argv=None):
    """Measure; returns what it wrote to the JSON file."""
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, StepArguments)
    torch.manual_seed(args.seed)
    vit = ViTForImageClassification.from_pretrained(args.model).to(args.device).train()
    config = vit.config
    size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    images = torch.randn(args.batch_size, config.num_channels, *size, device=args.device)
    labels = torch.arange(args.batch_size, device=args.device) % config.num_labels

    model = DynViTForImageClassification.from_vit(vit, gates=gate_entries(args.gates, config.num_hidden_layers))
    model.to(args.device).train()
    model.layout = "packed"
    generator = torch.Generator().manual_seed(args.seed)
    drawn = [draw_decisions(model, args.batch_size, args.cost, generator) for _ in range(args.draws)]
    draws = [move(decisions, args.device) for decisions in drawn]
    steps = {}
    for kernel in ("eager", "sdpa"):
        twin = copy.deepcopy(vit)
        twin.set_attn_implementation(kernel)
        steps[kernel] = Step(twin, images, labels, args, lambda index: {})
    steps["packed"] = Step(
        model, images, labels, args, lambda index: {"decisions": draws[index % len(draws)], "gating": "act"}
    )
    for index in range(args.draws):
        steps["packed"](index)  # 16-bit products on CPU compile a kernel per number of rows
    peaks = {name: peak_mib(partial(step, 0), args.device) for name, step in steps.items()}
    rounds = rounds_within(steps, args.seconds)
    ms = {name: 1e3 * s for name, s in interleaved_medians(with_progress(steps, rounds), rounds).items()}
    with torch.no_grad():
        cost = torch.cat([model(images, **steps["packed"].options(i)).cost for i in range(args.draws)]).mean().item()
    dense = min(("eager", "sdpa"), key=ms.get)
    results = {
        "kind": "step_time",
        "model": args.model,
        "gates": args.gates,
        "cost": cost,
        "dense_ms": {kernel: ms[kernel] for kernel in ("eager", "sdpa")},
        "packed_ms": ms["packed"],
        "time_ratio": ms["packed"] / ms[dense],
        "peak_mib": {"dense": peaks[dense], "packed": peaks["packed"]},
        "memory_ratio": peaks["packed"] / peaks[dense],
        "rounds": rounds,
        "batch_size": args.batch_size,
        **measured_on(args.device, "bfloat16 autocast" if args.autocast else "float32", args.seed),
    }
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"step at cost {cost:.3f}: {ms['packed']:.0f} ms packed, {ms[dense]:.0f} ms dense ({dense}): "
        f"{results['time_ratio']:.2f} of the time, {results['memory_ratio']:.2f} of the working memory"
    )
    return results


class Step:
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
