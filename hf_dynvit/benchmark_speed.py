"""Packed forwards under decisions of a given cost against the dense transformers model, timed in turns in one run."""

import copy
import time
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from .benchmark_decisions import draw_decisions, gate_entries, move
from .memory import peak_mib
from .modeling_dynvit import DynViTForImageClassification
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
        compiled: whether the dense baseline is compiled as well.
        prepacked: whether the packed models run with prepacked weights (on CPU).
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


def random_vit(size):
    """A ViT of `size` at 224 pixels with random weights and 1000 classes, in float32."""
    width, heads = SIZES[size]
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return ViTForImageClassification(ViTConfig(**shape, num_labels=1000)).eval()


def gated(vit, label):
    """`vit` with open gates, sharing its weights, in its dtype and on its device."""
    model = DynViTForImageClassification.from_vit(vit, gates=gate_entries(label, vit.config.num_hidden_layers))
    model.gates.to(vit.device)
    vit = _twin(vit)
    model.vit, model.classifier = vit.vit, vit.classifier
    return model


def dense_calls(vit, compiled):
    """Name of an attention kernel -> a copy of `vit` that uses it and shares its weights, compiled ones included."""
    calls = {}
    for kernel in ("eager", "sdpa"):
        twin = _twin(vit)
        twin.set_attn_implementation(kernel)
        calls[kernel] = twin
        if compiled:
            calls[f"compiled {kernel}"] = torch.compile(twin, dynamic=False)
    return calls


def _twin(vit):
    """A copy that shares the weights."""
    return copy.deepcopy(vit, memo={id(weight): weight for weight in vit.parameters()})


@torch.inference_mode()
def measure(vit, setting, seed):
    """Time one setting.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode, on the device to measure, in the setting's dtype.

    Returns:
        list of dicts, one row per gate set under its decisions and a last one with all gates of the first set open:
        `size`, `dtype`, `batch`, `gates`, `prepacked`, `rounds`, `cost` (mean, gates included), `dense_ms` (kernel -> median
        milliseconds), `packed_ms`, `speedup` (fastest dense / packed), `predicted` (1 / cost), `realised`
        (speedup * cost), `peak_mib` (name -> MiB held at once during a forward, beyond weights and inputs).

    Raises:
        ValueError: a cost out of reach of its gates.
    """
    torch.compiler.reset()  # one compiled graph per setting, not a growing list of shapes
    generator = torch.Generator().manual_seed(seed)
    config = vit.config
    pixels = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    images = torch.randn(setting.batch, config.num_channels, *pixels, generator=generator).to(vit.device, vit.dtype)
    packed = {}  # label -> model, its sets of decisions
    for label, target in setting.gate_sets:
        model = gated(vit, label)
        if setting.prepacked:
            model.prepack()
        draws = [draw_decisions(model, setting.batch, target, generator) for _ in range(setting.draws)]
        packed[label] = model, [move(decisions, vit.device) for decisions in draws]
    first = setting.gate_sets[0][0]
    packed[f"all open ({first})"] = packed[first][0], [None]

    dense = dense_calls(vit, setting.compiled)
    calls = {name: lambda index, model=model: model(images) for name, model in dense.items()}
    for label, (model, draws) in packed.items():
        calls[label] = lambda index, model=model, draws=draws: model(images, decisions=draws[index % len(draws)])
    costs = {
        label: torch.cat([model(images, decisions=draw).cost for draw in draws]).mean().item()
        for label, (model, draws) in packed.items()
    }  # every draw has run once: 16-bit products on CPU compile a kernel per number of rows
    peaks = {name: peak_mib(partial(call, 0), vit.device) for name, call in calls.items()}
    rounds = setting.rounds or rounds_within(calls, setting.seconds * len(packed))
    medians = interleaved_medians(with_progress(calls, rounds), rounds)
    ms = {name: 1e3 * seconds for name, seconds in medians.items()}

    dense_ms = {name: ms[name] for name in dense}
    rows = []
    for label in packed:
        speedup = min(dense_ms.values()) / ms[label]
        row = {"size": setting.size, "dtype": setting.dtype, "batch": setting.batch, "gates": label}
        row |= {"prepacked": setting.prepacked, "rounds": rounds}
        row |= {"cost": costs[label], "dense_ms": dense_ms, "packed_ms": ms[label], "speedup": speedup}
        row |= {"predicted": 1 / costs[label], "realised": speedup * costs[label]}
        rows.append(row | {"peak_mib": {name: peaks[name] for name in (*dense, label)}})
    return rows


def rounds_within(calls, seconds):
    """Rounds that take about `seconds`, from one round after a round to warm up."""
    for call in calls.values():
        call(0)
    start = time.perf_counter()
    for call in calls.values():
        call(0)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / (time.perf_counter() - start))))


def with_progress(calls, rounds):
    """The same calls, counted on a bar; it is drawn once a second at most, which medians do not see."""
    bar = tqdm(total=(rounds + 1) * len(calls), desc="timing", unit="forward", leave=False, mininterval=1.0)

    def counted(call):
        def run(index):
            call(index)
            bar.update()
            if bar.n >= bar.total:
                bar.close()

        return run

    return {name: counted(call) for name, call in calls.items()}
