"""Packed forwards under decisions of a given cost against the fastest dense model, timed in turns in one run."""

import time
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from ..model.configuration_dynvit import pair
from ..model.modeling_dynvit import DynViTForImageClassification
from .dense import OURS, dense_calls, twin
from .memory import kept_mib, peak_mib
from .random_decisions import draw_decisions, gate_entries, move
from .runtimes import Exported
from .timing import interleaved_medians


# Width and heads of the sizes of DeiT (Touvron et al., 2021), table 1; all have 12 layers and patches of 16 pixels.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_ROUNDS, MOST_ROUNDS = 7, 500


class Setting(NamedTuple):
    """What a block of rows has in common.

    Attributes:
        size: name for the table. dtype: key of `DTYPES`. batch: images.
        gate_sets: list of (kinds joined by "+", mean cost).
        draws: sets of decisions per gate set; rounds take them in turns.
        rounds: timed rounds, None for as many as fit into `seconds` per row, at least `LEAST_ROUNDS`.
        compiled: whether the dense baseline is compiled as well, as a number that is published must have it.
        prepacked: whether the packed models run with prepacked weights (on CPU).
        runtimes: of `benchmark_runtimes.RUNTIMES`, to time the dense model in as well.
    """

    size: str
    dtype: str
    batch: int
    gate_sets: list
    draws: int
    rounds: int | None
    seconds: float
    compiled: bool
    prepacked: bool
    runtimes: tuple = ()


def random_vit(size):
    """A ViT of `size` at 224 pixels with random weights and 1000 classes, in float32."""
    width, heads = SIZES[size]
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return ViTForImageClassification(ViTConfig(**shape, num_labels=1000)).eval()


def gated(vit, label):
    """`vit` with open gates, sharing its weights, in its dtype and on its device."""
    model = DynViTForImageClassification.from_vit(vit, gates=gate_entries(label, vit.config.num_hidden_layers))
    model.gates.to(vit.device)
    vit = twin(vit)
    model.vit, model.classifier = vit.vit, vit.classifier
    return model


@torch.inference_mode()
def measure(vit, setting, seed, exported=None):
    """Time one setting.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode, on the device to measure, in the setting's dtype.
        exported: an `Exported` of the same model, where the setting has runtimes; None exports it here.

    Returns:
        list of dicts, one row per gate set under its decisions and a last one with all gates of the first set open:
        `size`, `dtype`, `batch`, `gates`, `prepacked`, `rounds`, `cost` (mean, gates included), `dense_ms` (the ways of
        `dense_calls` -> median milliseconds), `other_ms` (the same of runtimes), `packed_ms`, `speedup` (fastest dense /
        packed), `gates_speedup` (our model without gates / packed, what skipping itself is worth), `predicted`
        (1 / cost), `realised` (speedup * cost), `peak_mib` (name -> MiB held at once during a forward and kept from the
        first one on, beyond weights and inputs), `prepacked_mib` (name -> what of it is kept).

    Raises:
        ValueError: a cost out of reach of its gates.
    """
    torch.compiler.reset()  # one compiled graph per setting, not a growing list of shapes
    generator = torch.Generator().manual_seed(seed)
    config = vit.config
    images = torch.randn(setting.batch, config.num_channels, *pair(config.image_size), generator=generator).to(
        vit.device, vit.dtype
    )
    packed = {}  # label -> model, its sets of decisions
    for label, target in setting.gate_sets:
        model = gated(vit, label)
        if setting.prepacked:
            model.prepack()
        draws = [draw_decisions(model, setting.batch, target, generator) for _ in range(setting.draws)]
        packed[label] = model, [move(decisions, vit.device) for decisions in draws]
    first = setting.gate_sets[0][0]
    opened = f"all open ({first})"
    packed[opened] = packed[first][0], [None]

    dense = dense_calls(vit, setting.compiled)
    calls = {name: lambda index, model=model: model(images) for name, model in dense.items()}
    kept = {name: kept_mib(partial(call, 0), vit.device) for name, call in calls.items()}  # compiles
    costs = {}
    for label, (model, draws) in packed.items():
        calls[label] = lambda index, model=model, draws=draws: model(images, decisions=draws[index % len(draws)])
        found = []

        def run_all(model=model, draws=draws, found=found):
            """Every draw once: 16-bit products on CPU compile a kernel per number of rows."""
            found += [model(images, decisions=draw).cost for draw in draws]

        kept[label] = kept_mib(run_all, vit.device) + (kept[first] if label == opened else 0)  # one model
        costs[label] = torch.cat(found).mean().item()
    peaks = {name: kept[name] + peak_mib(partial(call, 0), vit.device) for name, call in calls.items()}
    others = {}
    if setting.runtimes:
        exported = exported or Exported(vit, setting.runtimes, images.float().cpu())
        others = exported.calls([images])
    calls |= others
    rounds = setting.rounds or rounds_within(calls, setting.seconds * len(packed), warmup=len(others) > 0)
    medians = interleaved_medians(with_progress(calls, rounds, warmup=0), rounds, warmup=0)
    ms = {name: 1e3 * seconds for name, seconds in medians.items()}

    dense_ms = {name: ms[name] for name in dense}
    rows = []
    for label in packed:
        speedup, alone = min(dense_ms.values()) / ms[label], ms[OURS] / ms[label]
        row = {"size": setting.size, "dtype": setting.dtype, "batch": setting.batch, "gates": label}
        row |= {"prepacked": setting.prepacked, "rounds": rounds, "cost": costs[label], "dense_ms": dense_ms}
        row |= {"other_ms": {name: ms[name] for name in others}, "packed_ms": ms[label]}
        row |= {"speedup": speedup, "gates_speedup": alone, "predicted": 1 / costs[label]}
        row |= {"realised": speedup * costs[label], "peak_mib": {name: peaks[name] for name in (*dense, label)}}
        rows.append(row | {"prepacked_mib": {name: kept[name] for name in (*dense, label)}})
    return rows


def rounds_within(calls, seconds, warmup=1):
    """Rounds that take about `seconds`, from one round after `warmup` rounds."""
    for _ in range(warmup):
        for call in calls.values():
            call(0)
    start = time.perf_counter()
    for call in calls.values():
        call(0)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / (time.perf_counter() - start))))


def with_progress(calls, rounds, warmup=1):
    """The same calls, counted on a bar; it is drawn once a second at most, which medians do not see."""
    bar = tqdm(total=(rounds + warmup) * len(calls), desc="timing", unit="forward", leave=False, mininterval=1.0)

    def counted(call):
        def run(index):
            call(index)
            bar.update()
            if bar.n >= bar.total:
                bar.close()

        return run

    return {name: counted(call) for name, call in calls.items()}
