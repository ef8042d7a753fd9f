"""Labelled images: loaded, checked against a model, split and transformed."""

from .datasets import ImageDataset, SetEpoch, load_image_data, load_validation
from .digits import digit_canvases
from .rows import DataArguments


__all__ = ["DataArguments", "ImageDataset", "SetEpoch", "digit_canvases", "load_image_data", "load_validation"]
