"""A model with gates becomes a folder that OpenVINO or ONNX Runtime predicts from, without PyTorch."""

import copy
import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..measure.files import check_new_folder
from ..model.budgets import shift_gates
from ..model.cascade import in_look, view
from ..model.configuration_dynvit import pair
from ..model.gate_merge import MergeGate
from ..training.fixed import fix_merges
from . import runtime
from .checks import check_export
from .graphs import write_onnx, write_openvino
from .runtime import files_of


CLOSE = 0.05  # mean distance of pixels, in standard deviations


def export(
    model, folder, format="openvino", batch="one", quantize=None, calibration=None, processor=None, merges="own"
):
    """Write a graph that computes, of each image, what the gates keep and no more.

    The folder gets the graph (logits, and cost as a second output), config.json with the labels, preprocessor_config.json,
    and runtime.py: a copy of what loads it, for where hf_dynvit is not installed. A model with a `resolution` gets a graph
    for images of that size, to which the processor brings them at once. A cascade gets a graph for each look, which resizes
    images itself.

    Args:
        model: a `DynViTForImageClassification`; a copy of it is exported in float32.
        folder: a new or empty one.
        format: "openvino" or "onnx".
        batch: "one": of several images each runs alone, exactly what it decides. "dynamic": any number of images run together,
            with as many places for tokens as the fullest of them needs; each sub-layer runs those images that do not skip it.
        quantize: None or "int8", the linear layers of the blocks; gates and matching stay in float32.
        calibration: pixel_values (images, channels, height, width), of the exported size, for int8 and fixed merges. int8 of
            OpenVINO needs them; ONNX Runtime scales activations as they come without them, and ahead with them.
        processor: the image processor to write beside it; None: `predict` is not there, only calls with pixels.
        merges: "own": each image merges what its thresholds say. "fixed": each as much as the calibration images did on
            average, those pairs of the least logit, so that all sizes are known ahead (training/fixed.py). With them int8 of ONNX
            Runtime is calibrated as well.

    Returns:
        The folder's path.

    Raises:
        TypeError, ValueError, ImportError: as `check_export`; a folder that is not empty, a processor that cannot be written.
    """
    check_export(model, format, batch, quantize, calibration, merges)
    if merges == "fixed" and not len(calibration):
        raise ValueError("fixed merges need calibration images, got 0")
    preprocessor, folder = check_preprocessing(processor), Path(folder)
    size = pair(model.config.resolution or model.config.image_size)
    preprocessor = resized_by(preprocessor, size) if model.config.resolution else preprocessor
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (model.config.num_channels, *size)
    looks = [single_look(model, look) for look in range(len(model.config.cascade or [0]))]
    files = [folder / name for name in files_of(format, len(looks))]
    disabled = logging.root.manager.disable
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters and quantisers, which this package does not steer
        logging.disable(logging.WARNING)
        try:
            write = {"openvino": write_openvino, "onnx": write_onnx}[format]
            for look, file in zip(looks, files, strict=True):
                if merges == "fixed":
                    fix_merges(look, torch.as_tensor(calibration))
                write(look, shape, file, batch == "dynamic", quantize, calibration)
        finally:
            logging.disable(disabled)
    facts = {"format": format, "batch": batch, "quantize": quantize, "shape": list(shape), "looks": len(looks)}
    facts["merges"] = merges
    kept = looks[0].config if len(looks) == 1 else model.config  # of one look the graph has no table of budgets
    config = kept.to_dict() | {"deploy": facts, "auto_map": None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    shutil.copyfile(runtime.__file__, folder / "runtime.py")
    return folder


def single_look(model, look):
    """A copy of a model in float32, as it decides at its budget; of a cascade as it does in one look."""
    model = copy.deepcopy(model).float().cpu().eval()
    if model.config.cascade is None:
        return model.drop_budgets()
    resolution, shift = view(model.config, 1, look)
    shift_gates(model.learned_gates(), shift)
    for gate in model.learned_gates():
        if isinstance(gate, MergeGate):
            gate.merged = in_look(gate.merged, look)
    entries = model.config.gates or []
    model.config.gates = [
        {**entry, "merged": in_look(entry["merged"], look)}
        if entry["gate"] == "merge" and "merged" in entry
        else entry
        for entry in entries
    ] or None
    model.drop_budgets()
    model.config.cascade, model.config.resolution = None, resolution
    return model


def check_preprocessing(processor):
    """The content of preprocessor_config.json, of an image processor that `runtime.pixels` can stand for; None: nothing.

    Raises:
        ValueError: steps that it does not have.
    """
    if processor is None:
        return {}
    known = json.loads(processor.to_json_string())
    size = known.get("size") or {}
    if known.get("do_pad") or (known.get("do_resize") and not set(size) & {"height", "shortest_edge"}):
        raise ValueError(f"only processors that resize, crop, rescale and normalize can be exported, got {known}")
    if known.get("do_center_crop") and size.get("shortest_edge", size.get("height")) < max(
        known["crop_size"].values()
    ):
        raise ValueError(f"the crop must not be larger than the image, got {known['crop_size']} of {size}")
    if not _stands_for(processor, known):
        raise ValueError(
            f"{type(processor).__name__} does more than resize, crop, rescale and normalize: `runtime.pixels` would give others"
        )
    return known


def _stands_for(processor, known):
    """Whether `runtime.pixels` gives the processor's pixels of an image, up to what backends round otherwise."""
    channels = len(known["image_mean"]) if known.get("image_mean") else 3
    values = np.random.default_rng(0).integers(0, 256, (419, 523, channels), dtype=np.uint8)
    image = Image.fromarray(values.squeeze() if channels == 1 else values)
    expected = processor(image, return_tensors="pt")["pixel_values"][0].numpy()  # which all backends give
    found = runtime.pixels(image, known)
    return found.shape == expected.shape and float(np.abs(found - expected).mean()) < CLOSE


def resized_by(preprocessor, size):
    """The content of preprocessor_config.json for images of another size (height, width): of the same part of each image.

    Raises:
        ValueError: a processor that neither resizes to a height and a width, nor takes the middle after the shorter side has its size.
    """
    if not preprocessor:
        return preprocessor
    given, crops = preprocessor.get("size") or {}, preprocessor.get("do_center_crop")
    wanted = dict(zip(("height", "width"), size, strict=True))
    if not crops and {"height", "width"} <= set(given):
        return preprocessor | {"size": wanted}
    factors = {wanted[side] / preprocessor["crop_size"][side] for side in wanted} if crops else set()
    if not (preprocessor.get("do_resize") and given.get("shortest_edge") and len(factors) == 1):
        raise ValueError(
            "a model that resizes images can be exported with a processor that resizes to height and width, or to a shortest_edge of "
            f"which it takes the middle, got {preprocessor}"
        )
    return preprocessor | {
        "size": {"shortest_edge": round(given["shortest_edge"] * factors.pop())},
        "crop_size": wanted,
    }
