"""Input that is unusual or damaged: 16-bit grey keeps its shades, an unreadable image and a damaged file are named."""

import io
import random

import datasets
import numpy as np
import pytest
from image_files import NAMES, image, processor, save_checkpoint
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoConfig, ViTConfig

from hf_dynvit import DynViTTrainingArguments
from hf_dynvit.data.datasets import load_image_data
from hf_dynvit.data.rows import DataArguments
from hf_dynvit.data.transforms import EvalTransform, TrainTransform, eight_bit
from hf_dynvit.measure.files import sign_weights
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.starting_model import ModelArguments, load_base, load_teacher


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sixteen_bit_grey_keeps_its_shades(mode):
    shades = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    wide = Image.open(io.BytesIO(png(Image.fromarray(shades * 257))))
    assert wide.mode.startswith("I")  # what PIL makes of it
    plain = Image.fromarray(shades.astype(np.uint8))
    assert np.array_equal(np.asarray(eight_bit(wide, mode)), np.asarray(plain.convert(mode)))
    grey = processor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for transform in (EvalTransform(grey), TrainTransform(grey)):
        assert (transform(wide, draw()) - transform(plain, draw())).abs().max() < 1e-6


def draw():
    return random.Random(0)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Parquet files whose training row 7 holds half an image."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    files = []
    for split, count in (("train", 24), ("validation", 12)):
        images = [{"path": None, "bytes": png(image(index % 3, index))} for index in range(count)]
        if split == "train":
            images[7]["bytes"] = images[7]["bytes"][: len(images[7]["bytes"]) // 2]
        labels = [index % 3 for index in range(count)]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
        files.append(f"{split}={tmp_path}/{split}.parquet")
    return files


@pytest.mark.parametrize("options", [{}, {"validation_fraction": 0.25}, {"max_train_samples": 23}])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_by_split_row_and_column(broken, options, workers):
    config = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)))
    data = load_image_data(DataArguments(data_files=broken, **options), processor(), config)
    with pytest.raises(ValueError, match="the image in row 7 of split 'train', column 'image', cannot be read: "):
        for part in (data.train, data.selection):
            for _ in DataLoader(part, batch_size=6, num_workers=workers):
                pass


def test_damaged_files_of_a_model_are_named_when_a_recipe_loads_it(tiny_vit, tmp_path):
    folder = save_checkpoint(tmp_path / "vit", tiny_vit(num_labels=3))
    sign_weights(folder)
    given = ModelArguments(model_name_or_path=folder)
    config = load_base(given)[1]
    args = DynViTTrainingArguments(str(tmp_path / "out"), use_cpu=True)
    load_teacher(given, args, config)
    weights = tmp_path / "vit" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="model_name_or_path .*model.safetensors is damaged"):
        load_base(given)
    with pytest.raises(ValueError, match="teacher .*model.safetensors is damaged"):
        load_teacher(given, args, config)
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vi')
    with pytest.raises(OSError, match="config.json"):
        AutoConfig.from_pretrained(folder)


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("gates: [{gate: patch\nbudget: 0.5\n")
    with pytest.raises(ValueError, match="recipe.yaml is damaged, it holds no YAML"):
        parse_settings([str(tmp_path / "recipe.yaml")], ModelArguments)


def test_a_teacher_whose_classes_are_in_another_order_is_refused(tiny_vit, tmp_path):
    names, vit = ["ant", "bee", "cat"], tiny_vit(num_labels=3)
    folder, other = (save_checkpoint(tmp_path / str(step), vit, names[::step]) for step in (1, -1))
    given = ModelArguments(model_name_or_path=folder, teacher=other)
    args = DynViTTrainingArguments(str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(
        ValueError, match=r"has the model's classes in another order: \['cat', 'bee', 'ant'\], the model"
    ):
        load_teacher(given, args, load_base(given)[1])
