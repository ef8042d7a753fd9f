"""Trained models side by side: opened with the images for each, and timed dense and packed on these."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Subset
from transformers import AutoImageProcessor, PreTrainedConfig, ViTConfig, ViTForImageClassification

from ..data import ImageDataset, cropping, load_validation
from ..model.configuration_dynvit import DynViTConfig
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import is_prepacked
from .dense import dense_calls, twin
from .files import check_classifier, check_weights
from .speed import PROGRAM, race


TIMED_BATCHES, TIMED_IMAGES = 5, 32  # at least so many different ones, taken in turns by the rounds
CALIBRATION_IMAGES = 64


class Entrant(NamedTuple):
    """A model to compare: its name, itself, the dense ViT of the same weights, its images, its image processor."""

    name: str
    model: DynViTForImageClassification
    vit: ViTForImageClassification
    images: ImageDataset
    processor: str


def open_models(paths, data_args, device="cpu", dtype=torch.float32, labelled=True, seed=0):
    """Load models (folders or Hub ids of a DynViT or a ViT, which keeps everything) and the images for each.

    Args:
        data_args: `ImageArguments`; the validation split is used. labelled: no: labels are not read, if there are any.
        seed: as in `load_validation`.

    Raises:
        ValueError, OSError, FileNotFoundError: a model that is neither, or data that do not fit it.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    entrants = []
    for name, path in zip(names, paths, strict=True):
        fields = PreTrainedConfig.get_config_dict(path)[0]
        gated = fields.get("model_type") == DynViTConfig.model_type
        check_classifier(path, fields)
        check_weights(path)
        load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
        model = load(path, dtype=dtype).eval().to(device)
        processor = cropping(AutoImageProcessor.from_pretrained(path), data_args.crop_pct)
        images = load_validation(data_args, processor, model.config, seed, labelled)
        entrants.append(Entrant(name, model, dense_vit(model), images, processor.to_json_string()))
    return entrants


def dense_vit(model):
    """The transformers ViT with the weights of `model`, shared, and without its gates."""
    known = set(ViTConfig().to_dict()) - {"model_type", "architectures"} | {"head_dim"}  # read where it is given
    fields = {name: value for name, value in model.config.to_dict().items() if name in known}
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(**fields))
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("gates.")}
    vit.load_state_dict(weights, assign=True)
    return vit.eval()


def shuffled(entrant, seed=0):
    """The entrant with its images in a random order: files are often sorted by class, and the first ones are timed."""
    order = torch.randperm(len(entrant.images), generator=torch.Generator().manual_seed(seed)).tolist()
    return entrant._replace(images=Subset(entrant.images, order))


@torch.inference_mode()
def time_batches(entrant, batch, seconds, rounds=None, compiled=True, exported=None, different=None, program=None):
    """The `Speed` of a model at one batch size, in turns with the dense ways on the same real images.

    Args:
        seconds: time for the rounds. rounds: their number instead.
        compiled: whether the compiled model is among the dense ones, as in `dense_calls`.
        exported: an `Exported` of the dense model, to time beside them, or None.
        different: batches of other images, taken in turns, None for `TIMED_BATCHES` or as many as hold `TIMED_IMAGES`:
            single images differ most in cost.
        program: the model compiled as a whole, called like it, to time beside it; None: there is none.
    """
    different = different or max(TIMED_BATCHES, math.ceil(TIMED_IMAGES / batch))
    period = min(different, len(entrant.images) // batch)
    images = torch.stack([entrant.images[index]["pixel_values"] for index in range(period * batch)])
    batches = images.to(entrant.model.device, entrant.model.dtype).split(batch)
    dense = dense_calls(entrant.vit, compiled)
    models = dense | {"packed": twin(entrant.model)}  # which has kept nothing yet
    models |= {} if program is None else {PROGRAM: program}
    calls = {name: lambda index, model=model: model(batches[index % period]) for name, model in models.items()}
    others = exported.calls(batches) if exported else {}
    found = race(calls, others, dict.fromkeys(calls, period), entrant.model.device, seconds, rounds, period)
    return found.speed(batch, list(dense), "packed", list(others), is_prepacked(entrant.model))


def first_images(entrant):
    """A few images (C, ...) of the entrant, in float32 on CPU: what a runtime's quantisation is calibrated on."""
    count = min(CALIBRATION_IMAGES, len(entrant.images))
    return torch.stack([entrant.images[index]["pixel_values"] for index in range(count)])
