"""Transforms of a PIL image into a checkpoint's pixels: augmented for training, the image processor's own otherwise."""

import math

import numpy as np
import torch
from PIL import Image


class EvalTransform:
    """The pixels of an image processor; `mode` is the PIL mode that images are converted to, "RGB" or "L"."""

    def __init__(self, processor, mode="RGB"):
        self.processor, self.mode = processor, mode

    def __call__(self, image, random=None):
        """PIL image -> float32 (channels, height, width); nothing is drawn from `random`."""
        return self.processor(eight_bit(image, self.mode), return_tensors="pt")["pixel_values"][0]


class TrainTransform:
    """Random resized crop, random horizontal flip, then size, resampling, mean and std of the image processor.

    Cropping and resizing are one call: PIL reads a fractional box straight into the target size.

    Args:
        processor, mode: as in `EvalTransform`.
        min_crop_area: smallest share of the image's area that a crop takes, in (0, 1]; the largest is 1.
        flip: mirror half of the images.
    """

    def __init__(self, processor, mode="RGB", min_crop_area=0.35, flip=True):
        if not 0.0 < min_crop_area <= 1.0:
            raise ValueError(f"min_crop_area must be in (0, 1], got {min_crop_area}")
        self.mode, self.min_crop_area, self.flip = mode, min_crop_area, flip
        self.height, self.width = output_size(processor)
        self.resample = Image.Resampling(int(processor.resample))
        channels = len(Image.new(mode, (1, 1)).getbands())
        scale = processor.rescale_factor if processor.do_rescale else 1.0
        mean = processor.image_mean if processor.do_normalize else 0.0
        std = processor.image_std if processor.do_normalize else 1.0
        # (pixel * scale - mean) / std, as one subtraction and one product
        self.shift = _per_channel(mean, channels) / scale  # (channels, 1, 1)
        self.factor = scale / _per_channel(std, channels)

    def __call__(self, image, random):
        """PIL image, `random.Random` -> float32 (channels, height, width)."""
        box = crop_box(*image.size, self.min_crop_area, random)
        mirrored = self.flip and random.random() < 0.5
        image = eight_bit(image, self.mode).resize((self.width, self.height), self.resample, box=box)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).reshape(self.height, self.width, -1).permute(2, 0, 1)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.sub_(self.shift).mul_(self.factor)


def eight_bit(image, mode):
    """A PIL image in `mode`, "RGB" or "L"; of 16 bits the upper eight, as PIL itself reads 16-bit colours.

    PIL's own conversion of 16-bit grey cuts off at 255: nearly everything would be white.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert(mode)


def crop_box(width, height, min_area, random, ratios=(3 / 4, 4 / 3)):
    """A random box (left, top, right, bottom) in pixels, fractional, inside an image of `width` x `height`.

    Its area is uniform in [min_area, 1] of the image's, its aspect ratio log-uniform in `ratios`; a side that would
    leave the image is cut to it.
    """
    area = width * height * random.uniform(min_area, 1.0)
    ratio = math.exp(random.uniform(math.log(ratios[0]), math.log(ratios[1])))
    box_width, box_height = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = random.uniform(0, width - box_width), random.uniform(0, height - box_height)
    return left, top, min(width, left + box_width), min(height, top + box_height)


def output_size(processor):
    """(height, width) of the images that a processor gives.

    Raises:
        ValueError: a processor whose output size depends on the image.
    """
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if not size["height"] or not size["width"]:
        raise ValueError(f"the image processor must give images of one size, its size is {dict(size)}")
    return size["height"], size["width"]


def cropping(processor, crop_pct):
    """An image processor whose images are the middle of what they were, as timm's `crop_pct` cuts it; itself for None.

    Objects then appear about as large as in the random crops of training (Touvron et al., 2019, "Fixing the train-test
    resolution discrepancy").

    Raises:
        ValueError: a processor whose images are not square.
    """
    if crop_pct is None:
        return processor
    height, width = output_size(processor)
    if height != width:
        raise ValueError(
            f"crop_pct {crop_pct} is for square images, the image processor gives {(height, width)}: give crop_pct 0, which "
            "leaves images to it"
        )
    changed = {"size": {"shortest_edge": math.floor(height / crop_pct)}, "do_resize": True, "do_center_crop": True}
    fields = {**processor.to_dict(), **changed, "crop_size": {"height": height, "width": width}}
    return type(processor).from_dict(fields)


def crop_of(fields):
    """Which share of the shorter side of images an image processor leaves, to three digits; None of one that does not crop.

    Args:
        fields: of its preprocessor_config.json.
    """
    if not fields.get("do_center_crop"):
        return None
    size = fields["size"]
    return round(max(fields["crop_size"].values()) / size.get("shortest_edge", size.get("height")), 3)


def _per_channel(value, channels):
    return torch.tensor(value, dtype=torch.float32).expand(channels).view(channels, 1, 1)
