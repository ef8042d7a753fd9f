"""A model in each runtime, number format and state of its gates: all that can be run here, to be timed side by side.

Letters: B images.
"""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..measure.compiled import compiled
from ..measure.dense import AHEAD, dense_calls, kernels_at_hand
from ..measure.forwards import DTYPES
from ..measure.trained_models import dense_vit
from ..model.budgets import shift_gates
from ..model.gate import LearnedGate
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from .checks import check_export, check_packages
from .compiled import CompiledDynViT, check_compilable
from .export import export
from .runtime import DynViTRuntime
from .stream import Stream
from .timing import to_serve


logger = logging.getLogger(__name__)

DENSE, OPEN, GATED, FIXED = "dense", "gates open", "gated", "fixed merges"
PYTORCH, FORMATS = "PyTorch", {"ONNX Runtime": "onnx", "OpenVINO": "openvino"}
QUANTIZED = {"int8": True, "int8 dynamic": False}  # whether activations are scaled ahead, on calibration images
PRECISIONS = {  # of each runtime
    PYTORCH: ("float32", "bfloat16"),
    "ONNX Runtime": ("float32", *QUANTIZED),
    "OpenVINO": ("float32", "bfloat16", "int8"),
}
OPENED = 1e4  # added to logits, it opens a gate whatever else is in them


class Way(NamedTuple):
    """In which runtime, number format and state of its gates a model runs."""

    runtime: str
    precision: str
    gates: str


class Run(NamedTuple):
    """One way of several to run a batch.

    Attributes:
        how: "streams", "batch", or the way of PyTorch. call: pixel_values as `shape` wants them -> logits and cost.
        resized: whether it takes images as the model resizes them. numpy: whether it takes and gives arrays.
    """

    how: str
    call: object
    resized: bool
    numpy: bool


def check_ways(runtimes, precisions):
    """Refuse what is unknown, before any work; returns the `Way`s without their gates: pairs of runtime and precision.

    Raises:
        ValueError: a runtime or precision that is not in `PRECISIONS`, or a precision that none of the runtimes has.
        ImportError: a package that is missing.
    """
    known = {precision for runtime in PRECISIONS for precision in PRECISIONS[runtime]}
    for name, given, allowed in (("runtimes", runtimes, list(PRECISIONS)), ("precisions", precisions, sorted(known))):
        wrong = [one for one in given if one not in allowed]
        if wrong or not given:
            raise ValueError(f"{name} must be of {allowed}, got {wrong or given}")
    pairs = [(runtime, one) for runtime in runtimes for one in precisions if one in PRECISIONS[runtime]]
    absent = [one for one in precisions if one not in {precision for _, precision in pairs}]
    if absent:
        raise ValueError(f"{absent} is in none of {runtimes}: {PRECISIONS}")
    for runtime, precision in pairs:
        if runtime != PYTORCH:
            check_packages(FORMATS[runtime], precision in QUANTIZED)
    return pairs


def states(model):
    """State of the gates -> model: without gates, with all of them open, and as it decides. Without, the last layer computes what is read.

    Only thresholds have an open state, not fixed numbers, draws, and looks of a cascade.
    """
    found = {DENSE: DynViTForImageClassification.from_vit(dense_vit(model), last_layer="read")}
    gates = [gate for layer in model.gates for gate in layer.values()]
    by_threshold = all(isinstance(gate, LearnedGate) and _has_threshold(gate) for gate in gates)
    if model.config.cascade is None and gates and by_threshold:
        found[OPEN] = copy.deepcopy(model).drop_budgets()
        shift_gates(found[OPEN].learned_gates(), OPENED)
    return found | {GATED: model}


def is_compilable(model):
    """Whether all sizes of a model's layers can be known ahead."""
    try:
        check_compilable(model)
    except ValueError:
        return False
    return True


def _has_threshold(gate):
    return getattr(gate, "amount", "threshold") == "threshold" and getattr(gate, "merged", None) is None


class Graphs:
    """Exported graphs of a model's states, each in a folder, and its compiled forms.

    What cannot be exported is left out, and it is said. Where merges are fixed there is no open state: none would merge. PyTorch
    runs a model in which merge gates alone say how many tokens there are in both ways, as each image decides, and fixed and compiled.

    Args:
        models: of `states`. folder: an empty one. pairs: of `check_ways`; those of PyTorch are compiled, not exported.
        many: whether several images run at a time, so that graphs for batches are made too.
        calibration: tensor (images, channels, height, width), as images come. fixed: formats whose merges are fixed.
    """

    def __init__(self, models, folder, pairs, many, calibration, fixed=()):
        self.models, self.folders, self.compiled = models, {}, {}
        for runtime, precision in pairs:
            if runtime == PYTORCH and is_compilable(models[GATED]):
                self.compiled[precision] = CompiledDynViT(models[GATED], calibration, DTYPES[precision])
        made = {}  # graphs in float32 serve 16 bits too
        for runtime, precision in pairs:
            if runtime != PYTORCH:
                quantize = precision if precision in QUANTIZED else None
                made.setdefault((FORMATS[runtime], quantize), []).append((runtime, precision))
        wanted = [
            (*graph, gates, batch)
            for graph in made
            for gates in models
            for batch in ("one", "dynamic")[: 1 + many]
            if not (gates == OPEN and graph[0] in fixed)
        ]
        ready = [one for one in wanted if self._can(*one, calibration, fixed)]
        for format, quantize, gates, batch in tqdm(ready, desc="exporting", unit="graph"):
            place = Path(folder) / "_".join([format, (quantize or "float32").replace(" ", "_"), gates, batch])
            given = self._given(format, quantize, gates, calibration, fixed)
            try:
                export(models[gates], place, format, batch, quantize and "int8", **given)
            except Exception as error:  # exporters and quantisers have their own kinds; the other ways go on
                logger.warning("left out: %s, %s, %s, batch %s: %s", format, quantize, gates, batch, error)
                continue
            for runtime, precision in made[format, quantize]:
                self.folders.setdefault(Way(runtime, precision, gates), {})[batch] = place

    def _given(self, format, quantize, gates, calibration, fixed):
        merges = "fixed" if format in fixed and gates != DENSE else "own"
        needed = merges == "fixed" or QUANTIZED.get(quantize, False)
        images = to_serve(self.models[gates], calibration).numpy() if needed else None
        return {"calibration": images, "merges": merges}

    def _can(self, format, quantize, gates, batch, calibration, fixed):
        given = self._given(format, quantize, gates, calibration, fixed)
        try:
            check_export(self.models[gates], format, batch, quantize and "int8", **given)
        except ValueError as error:
            logger.warning("left out: %s, %s, %s, batch %s: %s", format, quantize, gates, batch, error)
            return False
        return True


def runs_of(graphs, pairs, size, threads, most=None):
    """Yields each `Way` with its `Run`s, for batches of one size on so many threads; what is not kept of them is freed.

    Args:
        most: runs of an exported way, all unless given; the first ones are single images.
    """
    for runtime, precision in pairs:
        if runtime == PYTORCH:
            found = _in_pytorch(graphs.models, precision)
            if precision in graphs.compiled:
                state = FIXED if check_compilable(graphs.models[GATED]) else GATED
                run = Run(AHEAD, partial(_forward, graphs.compiled[precision]), False, False)
                found.setdefault(Way(runtime, precision, state), []).append(run)
            yield from found.items()
    for way, folders in graphs.folders.items():
        streams = min(threads, size)
        places = [("streams", folders["one"], streams, 1)] if "one" in folders else []
        if "dynamic" in folders and (size > 1 or not places):
            places += [("batch", folders["dynamic"], 1, size)]
        if "dynamic" in folders and size > 1 and size % streams == 0 and streams > 1:
            places += [("batch in parts", folders["dynamic"], streams, size // streams)]
        runs = []
        for how, place, count, images in places[:most]:
            fixed = None if most else images  # a last batch may be smaller where predictions are compared
            runtime = DynViTRuntime.from_pretrained(place, threads, count, way.precision == "bfloat16", fixed)
            runs.append(Run(how if size > 1 else "", _both(runtime), way.gates != DENSE, True))
        yield way, runs


def _both(runtime):
    return lambda images: runtime(images)[:2]


def _in_pytorch(models, precision):
    dtype, found = DTYPES[precision], {}
    kernels = kernels_at_hand(dtype)
    for gates, model in models.items():
        if gates == DENSE:
            calls = dense_calls(dense_vit(model).to(dtype), compiled=False)
            calls[AHEAD] = compiled(Stream(copy.deepcopy(model).to(dtype).eval(), many=True, joint=True))
        else:
            own = copy.deepcopy(model).to(dtype).eval()
            calls = {"kernels" if kernels else "": own.prepack(kernels) if can_prepack() else own}
        found[Way(PYTORCH, precision, gates)] = [
            Run(how, partial(_forward, call), gates != DENSE, False) for how, call in calls.items()
        ]
    return found


def _forward(call, images):
    out = call(images)
    return out.logits, getattr(out, "cost", None)
