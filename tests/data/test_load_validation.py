"""One split alone: the validation split, or what a training holds out of train; with labels or without."""

import datasets
import pandas
import pytest
import torch
from image_files import NAMES, processor, write_parquet
from transformers import ViTConfig

from hf_dynvit.data import DataArguments, load_image_data, load_validation


CONFIG = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def stacked(images):
    return torch.stack([image["pixel_values"] for image in images])


@pytest.mark.parametrize("seed", [0, 3])
def test_of_the_split_to_train_on_it_is_what_the_training_holds_out(tmp_path, seed):
    given = {"data_files": write_parquet(tmp_path), "validation_fraction": 0.25}
    held_out = load_image_data(DataArguments(**given), processor(), CONFIG, seed=seed).calibration
    again = load_validation(DataArguments(**given, validation_split="train"), processor(), CONFIG, seed)
    assert len(again) == 6 and torch.equal(stacked(again), stacked(held_out))
    assert [image["labels"] for image in again] == [image["labels"] for image in held_out]
    other = load_validation(DataArguments(**given, validation_split="train"), processor(), CONFIG, seed + 1)
    assert not torch.equal(stacked(other), stacked(held_out))
    assert len(load_validation(DataArguments(**given), processor(), CONFIG, seed)) == 12  # another split is whole


def test_unlabelled_images_have_the_same_pixels_and_no_label(tmp_path):
    files = write_parquet(tmp_path)
    labelled = load_validation(DataArguments(data_files=files), processor(), CONFIG)
    path = files[1].partition("=")[2]
    bare = tmp_path / "bare.parquet"
    pandas.read_parquet(path)[["image"]].to_parquet(bare)
    images = load_validation(DataArguments(data_files=[str(bare)]), processor(), CONFIG, labelled=False)
    assert torch.equal(stacked(images), stacked(labelled)) and set(images[0]) == {"pixel_values"}
    with pytest.raises(ValueError, match="has no column 'label'"):
        load_validation(DataArguments(data_files=[str(bare)]), processor(), CONFIG)
