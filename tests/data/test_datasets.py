"""Data: the pixels are the checkpoint's, augmentation is reproducible, and what does not fit is named before any work."""

import random
from dataclasses import replace

import datasets
import pytest
import torch
from image_files import NAMES, processor, rows, write_folders, write_parquet
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, ViTConfig

from hf_dynvit.data.datasets import ImageDataset, load_image_data, load_validation
from hf_dynvit.data.rows import DataArguments, ImageArguments, parse_data_files
from hf_dynvit.data.transforms import EvalTransform, TrainTransform, crop_box, cropping


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def config(num_labels=3, names=NAMES, **fields):
    labels = {"num_labels": num_labels} if names is None else {"id2label": dict(enumerate(names))}
    return ViTConfig(image_size=32, patch_size=8, **labels, **fields)


def load(tmp_path, given=None, model=None, **arguments):
    files = write_parquet(tmp_path) if given is None else given
    return load_image_data(DataArguments(data_files=files, **arguments), processor(), model or config())


@pytest.mark.parametrize(
    "fields",
    [{}, {"resample": 2, "do_normalize": False}, {"size": {"height": 48, "width": 48}, "do_center_crop": True}],
)
def test_evaluation_pixels_are_exactly_those_of_the_checkpoints_processor(tmp_path, fields):
    crop = {"crop_size": {"height": 32, "width": 32}} if "size" in fields else {}
    processor(**fields, **crop).save_pretrained(tmp_path)
    reference = AutoImageProcessor.from_pretrained(tmp_path)
    data = rows(6, grey=[1, 4])
    mine = ImageDataset(data, EvalTransform(reference), "image", "label")
    for index in range(len(data)):
        pixels = reference(data[index]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(mine[index]["pixel_values"], pixels)


@pytest.mark.parametrize("fields", [{}, {"size": {"height": 48, "width": 48}, "do_center_crop": True}])
def test_crop_pct_takes_the_middle_of_the_shorter_side(fields):
    crop = {"crop_size": {"height": 32, "width": 32}} if fields else {}
    plain = processor(**fields, **crop)
    assert cropping(plain, None) is plain
    cropped, image = cropping(plain, 0.8), Image.new("RGB", (120, 80))
    image.paste((255, 255, 255), (28, 8, 92, 72))  # the middle 64 x 64 pixels: 0.8 of the shorter side
    assert cropped.size["shortest_edge"] == 40 and plain.to_dict() == processor(**fields, **crop).to_dict()
    pixels = EvalTransform(cropped)(image)
    assert pixels.shape == (3, 32, 32) and (pixels > 0.9).float().mean() > 0.8
    assert torch.equal(
        TrainTransform(cropped)(image, random.Random(1)), TrainTransform(plain)(image, random.Random(1))
    )


def test_crop_pct_is_refused_where_it_means_nothing(tmp_path):
    for wrong in (-0.1, 1.2):
        with pytest.raises(
            ValueError, match=f"crop_pct must be in \\(0, 1\\], or 0 for what the image processor does, got {wrong}"
        ):
            load(tmp_path, crop_pct=wrong)
    with pytest.raises(ValueError, match=r"crop_pct 0.9 is for square images, the image processor gives \(32, 48\)"):
        cropping(processor(size={"height": 32, "width": 48}), 0.9)
    assert (
        DataArguments(data_files=["train=a.parquet"], crop_pct=0.0).crop_pct is None
    )  # takes back what a recipe says


class Draw:
    """Stands in for `random.Random`: no crop of an image of aspect ratio 4:3, and a flip or none."""

    def __init__(self, flip):
        self.flip = flip

    def uniform(self, low, high):
        return high

    def random(self):
        return 0.0 if self.flip else 1.0


def test_an_uncropped_training_image_has_the_evaluation_pixels_and_a_flip_mirrors_them():
    source = rows(1)[0]["image"]
    assert source.size == (40, 30)
    plain = EvalTransform(processor())(source)
    train = TrainTransform(processor())
    assert train(source, Draw(flip=False)).is_contiguous()
    assert (train(source, Draw(flip=False)) - plain).abs().max() < 1e-5
    assert (train(source, Draw(flip=True)) - plain.flip(-1)).abs().max() < 1e-5
    assert (TrainTransform(processor(), flip=False)(source, Draw(flip=True)) - plain).abs().max() < 1e-5


def test_crops_stay_inside_and_cover_the_areas_asked_for():
    draw = random.Random(0)
    boxes = [crop_box(40, 30, 0.2, draw) for _ in range(2000)]
    areas = [(right - left) * (bottom - top) / 1200 for left, top, right, bottom in boxes]
    assert all(0 <= left < right <= 40 and 0 <= top < bottom <= 30 for left, top, right, bottom in boxes)
    assert 0.2 <= min(areas) + 1e-9 < 0.21 and 0.98 < max(areas) <= 1.0
    assert min(left for left, *_ in boxes) < 0.1 and max(right for *_, right, _ in boxes) > 39.9


def test_grey_images_become_three_equal_channels_before_normalising(tmp_path):
    plain = ImageDataset(
        rows(1, grey=[0]), TrainTransform(processor(image_mean=[0.5] * 3, image_std=[0.5] * 3)), "image", "label"
    )
    pixels = plain[0]["pixel_values"]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2])


def test_augmentation_depends_on_seed_epoch_and_row_alone(tmp_path):
    data = load(tmp_path).train
    first = data[3]["pixel_values"]
    torch.manual_seed(123)
    data[5]
    assert torch.equal(data[3]["pixel_values"], first)
    data.set_epoch(1)
    assert not torch.equal(data[3]["pixel_values"], first)
    data.set_epoch(0)
    other = ImageDataset(data.rows, data.transform, "image", "label", seed=1)
    assert not torch.equal(other[3]["pixel_values"], first)


def test_loader_workers_that_stay_alive_see_the_epoch_change(tmp_path):
    data = load(tmp_path).train
    with_workers = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        alone = next(iter(DataLoader(data, batch_size=4)))
        for index, batch in enumerate(with_workers):
            if index == 0:
                assert torch.equal(batch["pixel_values"], alone["pixel_values"])


def test_parquet_and_imagefolder_give_the_same_images(tmp_path):
    write_folders(tmp_path / "images")
    arguments = DataArguments(dataset_name="imagefolder", data_dir=str(tmp_path / "images"))
    # Folders give their classes in alphabetical order.
    folders = load_image_data(arguments, processor(), config(names=sorted(NAMES)))
    parquet = load(tmp_path)

    def content(dataset, names):
        return sorted((names[item["labels"]], item["pixel_values"].sum().item()) for item in dataset)

    assert folders.names == sorted(NAMES)
    assert content(folders.validation, folders.names) == content(parquet.validation, parquet.names)
    assert len(folders.train) == len(parquet.train) == 24


def test_a_held_out_part_is_disjoint_from_train_and_validation_stays_for_reporting(tmp_path):
    data = load(tmp_path, validation_fraction=0.25)
    assert (len(data.train), len(data.selection), len(data.validation)) == (18, 6, 12)

    def keys(dataset):
        return {row["image"].tobytes() for row in dataset.rows}

    assert not keys(data.train) & keys(data.selection)
    assert keys(data.calibration) == keys(data.selection)


def test_without_a_validation_split_the_held_out_part_is_reported(tmp_path):
    files = write_parquet(tmp_path)[:1]
    data = load(tmp_path, files, validation_fraction=0.25)
    assert data.validation.rows["label"][:] == data.selection.rows["label"][:]
    with pytest.raises(ValueError, match="no split 'validation', the data has \\['train'\\].*validation_fraction"):
        load(tmp_path, files)


def test_limits_take_a_random_part(tmp_path):
    data = load(tmp_path, max_train_samples=7, max_eval_samples=5)
    assert (len(data.train), len(data.validation), len(data.calibration)) == (7, 5, 7)
    assert data.train.rows["label"][:] != rows(7)["label"][:]


def test_columns_can_have_other_names(tmp_path):
    for split in ("train", "validation"):
        renamed = rows(6).rename_columns({"image": "img", "label": "fine_label"})
        renamed.to_parquet(tmp_path / f"{split}.parquet")
    files = [f"{split}={tmp_path}/{split}.parquet" for split in ("train", "validation")]
    assert len(load(tmp_path, files, image_column="img", label_column="fine_label").train) == 6
    with pytest.raises(ValueError, match="no column 'image', its columns are \\['img', 'fine_label'\\]"):
        load(tmp_path, files, label_column="fine_label")
    with pytest.raises(ValueError, match="no column 'label'"):
        load(tmp_path, files, image_column="img")


def test_parquet_from_elsewhere_holds_its_images_as_bytes(tmp_path):
    import pyarrow.parquet as pq

    files = write_parquet(tmp_path)
    for split in ("train", "validation"):
        table = pq.read_table(tmp_path / f"{split}.parquet").replace_schema_metadata(None)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = load(tmp_path, files)
    assert data.names is None and data.train[0]["pixel_values"].shape == (3, 32, 32)


def test_unusable_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file 'absent.parquet' \\(split 'train'\\)"):
        load(tmp_path, ["train=absent.parquet"])
    with pytest.raises(ValueError, match="must be Parquet files, got 'images.csv'"):
        load(tmp_path, ["train=images.csv"])
    with pytest.raises(FileNotFoundError, match="imagefolder needs data_dir.*'absent'"):
        DataArguments(dataset_name="imagefolder", data_dir="absent")
    with pytest.raises(ValueError, match="either dataset_name or data_files"):
        DataArguments()
    with pytest.raises(ValueError, match="no split 'dev', the data has \\['train', 'validation'\\]"):
        load(tmp_path, train_split="dev")
    with pytest.raises(ValueError, match="validation_fraction must be in \\[0, 1\\), got 1.0"):
        DataArguments(dataset_name="x", validation_fraction=1.0)
    with pytest.raises(ValueError, match="max_train_samples must be at least 1, got 0"):
        DataArguments(dataset_name="x", max_train_samples=0)
    rows(6).remove_columns("image").add_column("image", ["a.png"] * 6).to_parquet(tmp_path / "paths.parquet")
    with pytest.raises(ValueError, match="column 'image' must hold images"):
        load(tmp_path, [f"train={tmp_path}/paths.parquet", f"validation={tmp_path}/paths.parquet"])


def test_an_empty_split_is_refused(tmp_path):
    files = write_parquet(tmp_path)
    rows(3).select([]).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match="split 'validation' is empty"):
        load(tmp_path, files)


def test_labels_that_the_model_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="labels \\[2\\], but the model has 2 classes"):
        load(tmp_path, model=config(num_labels=2, names=None))
    unlabelled = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [row["image"] for row in rows(3)]
    hidden = datasets.Dataset.from_dict({"image": images, "label": [0, -1, 2]}, features=unlabelled)
    hidden.to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match="labels \\[-1\\]"):
        load_validation(DataArguments(data_files=[f"{tmp_path}/validation.parquet"]), processor(), config())
    named = unlabelled | {"label": datasets.Value("string")}
    strings = datasets.Dataset.from_dict({"image": images, "label": NAMES}, features=datasets.Features(named))
    strings.to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match="must hold class indices, whole numbers, it holds"):
        load_validation(DataArguments(data_files=[f"{tmp_path}/validation.parquet"]), processor(), config())


def test_labels_in_another_order_are_refused(tmp_path):
    swapped = config(names=["green", "red", "blue"])
    with pytest.raises(ValueError, match="label 0 is 'red' in the data but 'green' in the model"):
        load(tmp_path, model=swapped)
    with pytest.raises(ValueError, match="label 0 is 'red' in the data but 'cat' in the model"):
        load(tmp_path, model=config(names=["cat", "dog", "cow"]))
    assert load(tmp_path, model=swapped, trust_label_order=True).names == NAMES
    load(tmp_path, model=config(names=None))  # LABEL_0, ... claims nothing
    load(tmp_path, model=config(names=["Red", "green", "navy", "more"]))  # one spelling differs, one class is unused


def test_labels_are_matched_to_the_models_classes_by_name(tmp_path):
    plain = load(tmp_path)
    wider = config(5, ["heron", NAMES[2].upper(), NAMES[0], "crow", NAMES[1]])
    matched = load(tmp_path, model=wider, match_labels=True)
    places = [2, 4, 1]
    for part in ("train", "validation", "calibration"):
        ours, theirs = ([one["labels"] for one in getattr(data, part)] for data in (matched, plain))
        assert ours == [places[label] for label in theirs]
    with pytest.raises(
        ValueError, match=r"match_labels: 1 of 3 names are no class of the model, or several: \['\w+'\]"
    ):
        load(tmp_path, model=config(3, [NAMES[0], NAMES[1], "heron"]), match_labels=True)
    with pytest.raises(ValueError, match="give one of them"):
        load(tmp_path, match_labels=True, trust_label_order=True)
    data = DataArguments(data_files=write_parquet(tmp_path), match_labels=True)
    with pytest.raises(ValueError, match="new_classifier replaces them: give one of them"):
        load_image_data(data, processor(), config(), new_classifier=True)


def test_a_processor_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gives images of \(32, 32\) \(height, width\), the model takes \(64, 64\)"):
        load(tmp_path, model=ViTConfig(image_size=64, id2label=dict(enumerate(NAMES))))


def test_a_file_without_a_split_stays_what_it_was_where_another_split_is_looked_at(tmp_path):
    files = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for file in files:
        file.touch()
    args = ImageArguments(data_files=[f"train={files[0]}", str(files[1])])
    again = replace(args, validation_split="train")
    assert parse_data_files(again) == {"train": [str(files[0])], "validation": [str(files[1])]}


@pytest.mark.parametrize("kind", ["uint8", "bool", "int16"])
def test_whole_numbers_of_any_type_are_labels(tmp_path, kind):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    images = [row["image"] for row in rows(3)]
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1]}, features=features).to_parquet(
        tmp_path / "validation.parquet"
    )
    found = load_validation(DataArguments(data_files=[f"{tmp_path}/validation.parquet"]), processor(), config())
    assert [int(found[index]["labels"]) for index in range(3)] == [0, 1, 1]
