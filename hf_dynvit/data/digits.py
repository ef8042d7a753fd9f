"""Digit canvases: a data set made offline in seconds, of real digits on clutter, whose images differ in need.

Source of the digits: scikit-learn's `load_digits` (1,797 images of 8 x 8 pixels, a part of the UCI data set "Optical
Recognition of Handwritten Digits", collected by E. Alpaydin and C. Kaynak).
"""

import numpy as np
import torch
from torch.utils.data import Dataset


HELD_OUT = 0.2  # share of the digits that validation canvases are made of
FRAGMENT = 3  # side of a piece of clutter, in pixels of the 8 x 8 images
NOISE = 0.03  # standard deviation, of a range of 1


class DigitCanvases(Dataset):
    """Grey canvases with one digit each; entry i is {"pixel_values": float (3, size, size) in [-1, 1], "labels": int}.

    Attributes:
        canvases: uint8 (n, 1, size, size).
        labels: int64 (n,), 0 to 9.
        difficulty: float32 (n,), pieces of clutter on the canvas / the most there can be; 0 is an empty background.
        sources: int64 (n,), which of scikit-learn's digits is shown.
    """

    def __init__(self, canvases, labels, difficulty, sources):
        self.canvases, self.labels, self.difficulty, self.sources = canvases, labels, difficulty, sources

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        # Three equal channels and this scale are what a ViT's image processor makes of a grey picture.
        pixels = self.canvases[index].float() / 127.5 - 1.0
        return {"pixel_values": pixels.expand(3, -1, -1), "labels": int(self.labels[index])}


def digit_canvases(train, validation, size=96, scale=3, step=8, clutter=24, seed=0, contrast=0.5):
    """Draw canvases; the same arguments give the same canvases.

    The digits are split first: no digit, nor any piece of clutter, comes from the same image in both parts.

    Args:
        train, validation: canvases of each part, at least 1.
        size: side of a canvas in pixels.
        scale: pixels per pixel of the digit, which is 8 * scale pixels wide.
        step: the digit's place is a multiple of this many pixels (with the patch size, it fills whole patches).
        clutter: most pieces on a canvas; how many there are is drawn evenly from 0 to this.
        seed: of the split and of all that is drawn.
        contrast: brightness of clutter relative to the digit, in (0, 1]; at 1 only its shape tells it from the digit.

    Returns:
        Two `DigitCanvases`: train, validation.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a count below 1, a contrast outside (0, 1], or a canvas that the digit does not fit on.
    """
    counts = {"train": train, "validation": validation, "scale": scale, "step": step, "clutter": clutter}
    for name, value in counts.items():
        least = 0 if name == "clutter" else 1
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < contrast <= 1:
        raise ValueError(f"contrast must be in (0, 1], got {contrast}")
    if size < 8 * scale:
        raise ValueError(f"a digit of {8 * scale} pixels (scale {scale}) does not fit on a canvas of {size}")
    digits, labels = _load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    held_out = round(HELD_OUT * len(labels))
    draw = (size, scale, step, clutter, contrast, rng)
    return tuple(
        _draw(digits, labels, pool, count, *draw)
        for pool, count in ((order[held_out:], train), (order[:held_out], validation))
    )


def _load_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install hf_dynvit[demo]") from error
    loaded = load_digits()
    return (loaded.images / 16).astype(np.float32), loaded.target  # (1797, 8, 8) in [0, 1], (1797,)


def _draw(digits, labels, pool, count, size, scale, step, clutter, contrast, rng):
    canvases = np.empty((count, 1, size, size), np.uint8)
    sources = rng.choice(pool, count)
    pieces = rng.integers(0, clutter + 1, count)
    for canvas, source, number in zip(canvases, sources, pieces, strict=True):
        drawn = rng.normal(0, NOISE, (size, size)).astype(np.float32)
        for other in rng.choice(pool, number):
            top, left = rng.integers(0, 8 - FRAGMENT + 1, 2)
            piece = digits[other, top : top + FRAGMENT, left : left + FRAGMENT]
            _place(drawn, contrast * piece, scale, 1, rng)
        _place(drawn, digits[source], scale, step, rng)  # last: clutter never covers the digit
        canvas[0] = (drawn.clip(0, 1) * 255).round()
    return DigitCanvases(
        torch.from_numpy(canvases),
        torch.from_numpy(labels[sources].astype(np.int64)),
        torch.from_numpy(pieces.astype(np.float32) / max(1, clutter)),
        torch.from_numpy(sources),
    )


def _place(canvas, picture, scale, step, rng):
    """Put an enlarged picture at a random place whose coordinates are multiples of `step`."""
    picture = picture.repeat(scale, 0).repeat(scale, 1)
    side = len(picture)
    top, left = rng.integers(0, (len(canvas) - side) // step + 1, 2) * step
    canvas[top : top + side, left : left + side] = picture
