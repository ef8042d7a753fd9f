"""How long an exported model takes for an image: beside the dense model in the same runtime, and beside PyTorch."""

import statistics
import tempfile
from pathlib import Path

import torch

from ..measure.timing import Timing, milliseconds_of_each
from ..measure.trained_models import dense_vit
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.resolution import resized
from .export import export
from .runtime import DynViTRuntime


LEAST_REPETITIONS = 3  # of each image


def to_serve(model, pixel_values):
    """Images as the exported model takes them: of the size that the model resizes them to, if it is one."""
    return resized(pixel_values, model.config.resolution) if model.config.resolution else pixel_values


def timings(model, folder, pixel_values, batch_sizes, seconds, **exported):
    """A `Timing` for each batch size: the mean over batches, of the median over repetitions, taken in turns in one run.

    Where images run one by one, several of them run at the same time, on a stream each, as many as there are threads.

    Args:
        model: in evaluation mode, prepacked or not. folder: where it was exported to.
        pixel_values: tensor (images, channels, height, width), as they come: those that the model resizes are so beforehand.
        batch_sizes: none above the number of images; what does not fill a batch is left out. seconds: to spend on each.
        exported: arguments of `export` after its folder; the dense model is exported in the same way, int8 on images as they
            come (`calibration`, a tensor). Several images of it run on streams and as a batch: the fastest way counts.
    """
    with tempfile.TemporaryDirectory() as place:
        dense = DynViTForImageClassification.from_vit(dense_vit(model), last_layer="read")
        calibration = exported.pop("calibration", None)
        calibration = None if calibration is None else calibration.numpy()
        ways = {exported["batch"], "dynamic"} if max(batch_sizes) > 1 else {exported["batch"]}
        rivals = [
            export(dense, Path(place) / batch, calibration=calibration, **{**exported, "batch": batch})
            for batch in sorted(ways)
        ]
        with torch.inference_mode():
            return [_timing(model, folder, rivals, pixel_values, size, seconds) for size in batch_sizes]


def _timing(model, folder, rivals, pixel_values, size, seconds):
    threads, period = torch.get_num_threads(), len(pixel_values) // size
    streams = min(threads, size)
    tensors = to_serve(model, pixel_values[: period * size]).split(size)
    as_they_come = [batch.numpy() for batch in pixel_values[: period * size].split(size)]
    ways = {(place, streams) for place in rivals} | {
        (place, 1) for place in rivals
    }  # in parts, and whole on all threads
    places = {"exported": (folder, streams)} | {f"dense {n}": way for n, way in enumerate(sorted(ways))}
    arrays = dict.fromkeys(places, as_they_come) | {"exported": [batch.numpy() for batch in tensors]}
    runs = {
        name: DynViTRuntime.from_pretrained(place, threads, count, images=None if size % count else size // count)
        for name, (place, count) in places.items()
    }
    calls = {name: lambda index, run=run, name=name: run(arrays[name][index % period]) for name, run in runs.items()}
    calls["packed"] = lambda index: model(tensors[index % period])
    for call in calls.values():  # each number of tokens compiles what it needs
        for index in range(period):
            call(index)
    found, rounds = milliseconds_of_each(calls, period, seconds, LEAST_REPETITIONS)
    ms = {name: batch / size for name, batch in found.items()}
    dense = min(ms[name] for name in ms if name.startswith("dense"))
    cost = statistics.mean(float(runs["exported"](images).cost.mean()) for images in arrays["exported"])
    dense_cost = float(runs["dense 0"](as_they_come[0]).cost.mean())
    return Timing(size, period * size, cost, ms["exported"], dense, ms["packed"], rounds, dense_cost)
