"""Small labelled images on disk, and a tiny checkpoint that fits them: three colours, 32 pixels, a few grey ones."""

import datasets
import numpy as np
from PIL import Image
from transformers import ViTImageProcessor


NAMES = ["red", "green", "blue"]


def image(label, seed, size=(40, 30)):
    """Noise in which channel `label` is brighter."""
    pixels = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., label] += 100
    return Image.fromarray(pixels)


def rows(count, names=NAMES, grey=()):
    """A `datasets.Dataset` with `count` images, labels in turn; those in `grey` have a single channel."""
    labels = [index % len(names) for index in range(count)]
    images = [image(label % 3, index).convert("L" if index in grey else "RGB") for index, label in enumerate(labels)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def write_parquet(folder, train=24, validation=12, **kwargs):
    """Writes train.parquet and validation.parquet; returns the value of `data_files`."""
    for split, count in (("train", train), ("validation", validation)):
        rows(count, **kwargs).to_parquet(folder / f"{split}.parquet")
    return [f"train={folder}/train.parquet", f"validation={folder}/validation.parquet"]


def write_folders(folder, train=24, validation=12):
    """Writes folder/<split>/<class>/<number>.png."""
    for split, count in (("train", train), ("validation", validation)):
        for index in range(count):
            path = folder / split / NAMES[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image(index % 3, index).save(path)


def processor(**fields):
    """The image processor of the tiny model: 32 x 32, bicubic, with a mean and std that differ by channel."""
    fields = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "resample": 3, **fields}
    return ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **fields})


def save_checkpoint(folder, vit, names=NAMES):
    """Saves the ViT and its processor as a checkpoint whose classes have `names`."""
    vit.config.id2label = dict(enumerate(names))
    vit.config.label2id = {name: index for index, name in enumerate(names)}
    vit.save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)
