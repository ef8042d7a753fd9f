"""Packed forwards under decisions of a given cost against the fastest dense model, timed in turns in one run."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import ViTConfig, ViTForImageClassification

from ..model.configuration_dynvit import pair
from ..model.modeling_dynvit import DynViTForImageClassification
from .dense import dense_calls, twin
from .random_decisions import draw_decisions, gate_entries, move
from .runtimes import Exported
from .speed import Speed, race


# Width and heads of the sizes of DeiT (Touvron et al., 2021), table 1; all have 12 layers and patches of 16 pixels.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Setting(NamedTuple):
    """What a block of rows has in common.

    Attributes:
        gate_sets: list of (kinds joined by "+", mean cost). draws: sets of decisions per gate set, taken in turns.
        rounds: timed rounds, None for as many as fit into `seconds` per row.
        compiled: whether the dense baseline is compiled as well, as a number that is published must have it.
        prepacked: whether the packed models run with prepacked weights (on CPU).
        runtimes: of `runtimes.RUNTIMES`, to time the dense model in as well.
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


def image_shape(config):
    """(channels, height, width) of the images of a configuration."""
    return config.num_channels, *pair(config.image_size)


def gated(vit, label):
    """`vit` with open gates, sharing its weights, in its dtype and on its device."""
    model = DynViTForImageClassification.from_vit(vit, gates=gate_entries(label, vit.config.num_hidden_layers))
    model.gates.to(vit.device)
    vit = twin(vit)
    model.vit, model.classifier = vit.vit, vit.classifier
    return model


@dataclass(kw_only=True)
class RandomSpeed(Speed):
    """Under random decisions; `gates`: their kinds joined by "+", or "all open (...)"."""

    size: str
    dtype: str
    gates: str


@torch.inference_mode()
def measure(vit, setting, seed, exported=None):
    """Time one setting.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode, on the device to measure, in the setting's dtype.
        exported: an `Exported` of the same model, where the setting has runtimes; None exports it here.

    Returns:
        list of `RandomSpeed`, one per gate set under its decisions and a last one with all gates of the first set open.

    Raises:
        ValueError: a cost out of reach of its gates.
    """
    torch.compiler.reset()  # one compiled graph per setting, not a growing list of shapes
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(setting.batch, *image_shape(vit.config), generator=generator).to(vit.device, vit.dtype)
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
    for label, (model, draws) in packed.items():
        calls[label] = lambda index, model=model, draws=draws: model(images, decisions=draws[index % len(draws)])
    others = {}
    if setting.runtimes:
        exported = exported or Exported(vit, setting.runtimes, images.float().cpu())
        others = exported.calls([images])
    turns, seconds = {label: len(draws) for label, (_, draws) in packed.items()}, setting.seconds * len(packed)
    found = race(calls, others, turns, vit.device, seconds, setting.rounds, shared={opened: first})
    facts = {"size": setting.size, "dtype": setting.dtype, "prepacked": setting.prepacked, "kind": RandomSpeed}
    return [found.speed(setting.batch, list(dense), label, list(others), gates=label, **facts) for label in packed]
