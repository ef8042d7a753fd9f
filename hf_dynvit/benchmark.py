"""The speed of packed forwards in random decisions of a given mean cost: `python -m hf_dynvit.benchmark`.

Trained models are measured by recipes/evaluate.py.
"""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import HfArgumentParser, ViTConfig, ViTForImageClassification

from .measure.forwards import DTYPES, SIZES, Setting, gated, image_shape, measure, random_vit
from .measure.provenance import measured_on
from .measure.random_decisions import draw_decisions
from .measure.runtimes import RUNTIMES, Exported, check_runtimes
from .model.convert import load_vit
from .model.prepack import can_prepack
from .report.plots import speed_plot
from .report.results import Benchmark
from .report.schema import write
from .report.tables import speed_table


CALIBRATION = 8  # random images; they decide the scales of int8, not its speed


@dataclass
class BenchmarkArguments:
    """What to time, and where to write it."""

    sizes: list[str] = field(default_factory=lambda: ["tiny"], metadata={"help": f"sizes of ViT, of {list(SIZES)}"})
    model: str | None = field(default=None, metadata={"help": "folder or Hub id of a ViT to time instead of sizes"})
    dtypes: list[str] = field(default_factory=lambda: ["float32"], metadata={"help": f"of {list(DTYPES)}"})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32])
    gates: list[str] = field(
        default_factory=lambda: ["patch+sublayer", "patch+sublayer+head"],
        metadata={"help": 'gate sets; "head@0.9" has a mean cost of its own'},
    )
    cost: float = field(default=0.5, metadata={"help": "mean cost of the decisions, gates included"})
    draws: int = field(default=8, metadata={"help": "sets of decisions per gate set, taken in turns"})
    rounds: int | None = field(default=None, metadata={"help": "timed rounds; None: as many as fit into --seconds"})
    seconds: float = field(default=20.0, metadata={"help": "time per row, warm-up not counted"})
    compile: bool = field(
        default=True, metadata={"help": "also compile the dense model, as report.py demands of what it publishes"}
    )
    runtimes: list[str] = field(
        default_factory=list, metadata={"help": f"to time the dense model in as well, of {list(RUNTIMES)}"}
    )
    prepack: bool | None = field(
        default=None, metadata={"help": "run packed models with prepacked weights; None: on CPU where torch can"}
    )
    seed: int = 0
    device: str | None = field(default=None, metadata={"help": "cuda or cpu; None: CUDA where there is one"})
    json: str | None = field(default=None, metadata={"help": "file for rows and circumstances"})
    plot: str | None = field(default=None, metadata={"help": "file for a PNG"})

    def __post_init__(self):
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.prepack is None:
            self.prepack = self.device == "cpu" and can_prepack()
        elif self.prepack and self.device != "cpu":
            raise ValueError(f"prepack is for the CPU, the device is {self.device}")
        _check_names("sizes", self.sizes, SIZES)
        _check_names("dtypes", self.dtypes, DTYPES)
        check_runtimes(self.runtimes)
        for name in ("draws", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {self.batch_sizes}")
        for path in filter(None, (self.json, self.plot)):
            if not os.access(Path(path).absolute().parent, os.W_OK):
                raise ValueError(f"cannot write {path}: its folder is missing or closed to you")

    def gate_sets(self):
        """(kinds joined by "+", mean cost) of each of `gates`."""
        sets = []
        for entry in self.gates:
            kinds, at, cost = entry.partition("@")
            try:
                sets.append((kinds, float(cost) if at else self.cost))
            except ValueError as error:
                raise ValueError(f'a gate set is "KINDS" or "KINDS@COST", got {entry!r}') from error
            if not 0 < sets[-1][1] <= 1:
                raise ValueError(f"the mean cost of a gate set must be in (0, 1], got {sets[-1][1]}")
        return sets


def _check_names(option, given, known):
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ValueError(f"{option} must be of {list(known)}, got {wrong[0]!r}")


def main(arguments=None):
    """Run the benchmark that the command line asks for; the table goes to stdout, progress to stderr."""
    (args,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(arguments)
    for dtype in args.dtypes:
        _check_dtype(dtype, args.device)
    if args.model:
        vits = {Path(args.model).name: load_vit(args.model, dtype=torch.float32).eval()}
    else:
        vits = {size: random_vit(size) for size in dict.fromkeys(args.sizes)}
    generator = torch.Generator().manual_seed(args.seed)
    for vit, (kinds, target) in itertools.product(vits.values(), args.gate_sets()):
        draw_decisions(gated(vit, kinds), 8, target, generator)  # refuses costs out of reach
    speeds, exported = [], {}
    with tqdm(list(itertools.product(vits, args.dtypes, args.batch_sizes)), unit="setting") as bar:
        for size, dtype, batch in bar:
            bar.set_description(f"{size} {dtype} batch {batch}")
            given = args.draws, args.rounds, args.seconds, args.compile, args.prepack, tuple(args.runtimes)
            setting = Setting(size, dtype, batch, args.gate_sets(), *given)
            if args.runtimes and size not in exported:
                images = torch.randn(CALIBRATION, *image_shape(vits[size].config), generator=generator)
                exported = {size: Exported(vits[size], args.runtimes, images)}  # the last one's files go
            speeds += measure(vits[size].to(args.device, DTYPES[dtype]), setting, args.seed, exported.get(size))
            if args.json:  # an interrupted run keeps what it has
                measured = measured_on(args.device, ", ".join(args.dtypes), args.seed)
                write(args.json, Benchmark(rows=speeds, **measured))
    print(speed_table(speeds))
    if args.plot:
        speed_plot(speeds, args.plot)


def _check_dtype(dtype, device):
    """Refuse a dtype that the device cannot compute a ViT in."""
    config = ViTConfig(hidden_size=64, num_attention_heads=1, num_hidden_layers=1, intermediate_size=64, image_size=32)
    try:
        with torch.inference_mode():
            ViTForImageClassification(config).to(device, DTYPES[dtype])(
                torch.zeros(1, 3, 32, 32, device=device, dtype=DTYPES[dtype])
            )
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"a ViT in {dtype} does not run on {device}: {error}") from error


if __name__ == "__main__":
    main()
