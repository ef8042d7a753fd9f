"""How long an exported model takes for an image: beside the dense model in the same runtime, and beside PyTorch."""

import statistics
import tempfile
from pathlib import Path

import torch

from ..measure.timing import interleaved_seconds, rounds_within, with_progress
from ..measure.trained_models import dense_vit
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.resolution import resized
from .export import export
from .runtime import DynViTRuntime


LEAST_REPETITIONS = 3  # of each image


def to_serve(model, pixel_values):
    """Images as the exported model takes them: of the size that the model resizes them to, if it is one."""
    return resized(pixel_values, model.config.resolution) if model.config.resolution else pixel_values


def exported_ms(model, folder, pixel_values, seconds, format, quantize=None, calibration=None):
    """Milliseconds of one image alone: the mean over images, of the median over repetitions, taken in turns in one run.

    Args:
        model: in evaluation mode, prepacked or not. folder: where it was exported to.
        pixel_values: tensor (images, channels, height, width), as they come: those that the model resizes are so beforehand.
        seconds: to spend. format, quantize: as in `export`; the dense model is exported in the same way, int8
            by `calibration`, images as they come.

    Returns:
        "exported", "dense" (in the same runtime) and "packed" (in PyTorch) -> milliseconds; and the rounds that were timed.
    """
    with tempfile.TemporaryDirectory() as place:
        dense = DynViTForImageClassification.from_vit(dense_vit(model))
        at = export(
            dense, Path(place) / "dense", format, "one", quantize, None if calibration is None else calibration.numpy()
        )
        threads, period = torch.get_num_threads(), len(pixel_values)
        runs = {
            "exported": DynViTRuntime.from_pretrained(folder, threads),
            "dense": DynViTRuntime.from_pretrained(at, threads),
        }
        tensors = to_serve(model, pixel_values).split(1)
        given = {"exported": [one.numpy() for one in tensors], "dense": [one.numpy() for one in pixel_values.split(1)]}
        calls = {
            name: lambda index, run=run, images=given[name]: run(images[index % period]) for name, run in runs.items()
        }
        calls["packed"] = lambda index: model(tensors[index % period])
        with torch.inference_mode():
            for call in calls.values():  # each number of tokens compiles what it needs
                for index in range(period):
                    call(index)
            repetitions = max(LEAST_REPETITIONS, rounds_within(calls, seconds) // period)
            rounds = repetitions * period
            took = interleaved_seconds(with_progress(calls, rounds, warmup=0), rounds, warmup=0)
    medians = {
        name: [statistics.median(times[start::period]) for start in range(period)] for name, times in took.items()
    }
    return {name: 1e3 * statistics.mean(found) for name, found in medians.items()}, rounds
