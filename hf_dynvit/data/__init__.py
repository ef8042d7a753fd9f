"""Labelled images: loaded, checked against a model, split and transformed."""

from .datasets import ImageDataset, SetEpoch, load_image_data, load_validation
from .digits import digit_canvases
from .rows import DataArguments, ImageArguments, check_held_out
from .transforms import crop_of, cropping


__all__ = [
    "DataArguments",
    "ImageArguments",
    "ImageDataset",
    "SetEpoch",
    "check_held_out",
    "crop_of",
    "cropping",
    "digit_canvases",
    "load_image_data",
    "load_validation",
]
