"""The canvases are the same for the same seed, well-formed, and share no digit between train and validation."""

import sys

import pytest
import torch

from hf_dynvit.data.digits import digit_canvases


@pytest.fixture(scope="module")
def parts():
    return digit_canvases(400, 200, size=48, seed=3)


def test_an_entry_is_what_a_trainer_collates(parts):
    entry = parts[0][0]
    assert entry["pixel_values"].shape == (3, 48, 48) and entry["pixel_values"].dtype == torch.float32
    assert -1 <= entry["pixel_values"].min() and entry["pixel_values"].max() <= 1
    assert type(entry["labels"]) is int and entry["labels"] == parts[0].labels[0]
    assert [len(part) for part in parts] == [400, 200]


def test_no_digit_is_in_both_parts(parts):
    train, validation = (set(part.sources.tolist()) for part in parts)
    assert train and validation and not train & validation


def test_the_seed_decides_everything(parts):
    again, other = digit_canvases(400, 200, size=48, seed=3), digit_canvases(400, 200, size=48, seed=4)
    for first, second in zip(parts, again, strict=True):
        assert torch.equal(first.canvases, second.canvases) and torch.equal(first.labels, second.labels)
    assert not torch.equal(parts[0].canvases, other[0].canvases)


def test_a_difficult_canvas_has_more_ink(parts):
    ink = (parts[0].canvases > 51).float().mean((1, 2, 3))
    assert parts[0].difficulty.min() == 0 and parts[0].difficulty.max() == 1
    assert ink[parts[0].difficulty > 0.7].mean() > 1.5 * ink[parts[0].difficulty < 0.3].mean()


def test_contrast_is_the_brightness_of_clutter_relative_to_the_digit():
    dim, bright = (digit_canvases(8, 1, size=48, clutter=12, seed=5, contrast=contrast)[0] for contrast in (0.4, 1.0))
    assert dim.canvases.max() == bright.canvases.max()  # the digits are the same
    changed = (dim.canvases.float() - bright.canvases.float()).abs() > 8
    shares = dim.canvases[changed].float() / bright.canvases[changed].float()
    assert changed.any() and 0.3 < shares.median() < 0.5


def test_the_digit_is_the_one_that_the_label_names(parts):
    load_digits = pytest.importorskip("sklearn.datasets").load_digits()
    assert torch.equal(parts[1].labels, torch.from_numpy(load_digits.target)[parts[1].sources])
    plain = digit_canvases(4, 1, size=24, scale=3, clutter=0, seed=0)[0]  # nothing but the digit
    for canvas, source in zip(plain.canvases[:, 0], plain.sources, strict=True):
        shown = canvas[1::3, 1::3].float() / 255 * 16
        assert (shown - torch.from_numpy(load_digits.images[source])).abs().mean() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"clutter": -1}, "clutter must be at least 0, got -1"),
        ({"contrast": 0.0}, r"contrast must be in \(0, 1\], got 0.0"),
        ({"size": 16}, "does not fit on a canvas of 16"),
    ],
)
def test_impossible_canvases_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_canvases(**{"train": 4, "validation": 4, **arguments})


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install hf_dynvit\[demo\]"):
        digit_canvases(4, 4)
