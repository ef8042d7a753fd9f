"""Rows of labelled images, from the Hub or from local files, checked before any work starts."""

import glob
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers.hf_argparser import HfArg


WHOLE = ("int", "uint", "bool")  # how the types of whole numbers begin


@dataclass
class ImageArguments:
    """Where the images are, which of them to look at, and how: what everything takes that trains nothing."""

    dataset_name: str | None = HfArg(
        default=None, help="Hub name of a data set, or 'imagefolder' together with data_dir"
    )
    dataset_config_name: str | None = HfArg(default=None, help="configuration of the Hub data set")
    data_dir: str | None = HfArg(default=None, help="folder with train/<class>/*, validation/<class>/*")
    data_files: list[str] | None = HfArg(
        default=None,
        help="Parquet files as split=path, e.g. train=a.parquet validation=b.parquet; a path alone is of the split to report on; or none",
    )
    train_split: str = HfArg(default="train", help="split to train on")
    validation_split: str = HfArg(default="validation", help="split to report on")
    image_column: str = HfArg(default="image", help="column with the images")
    label_column: str = HfArg(default="label", help="column with the class indices")
    validation_fraction: float = HfArg(
        default=0.0, help="part of train held out to choose on; validation is then only reported"
    )
    max_eval_samples: int | None = HfArg(default=None, help="use at most so many validation images")
    crop_pct: float | None = HfArg(
        default=None,
        help="evaluate on the middle of images, as timm does: their shorter side becomes the model's / crop_pct, and what is beyond "
        "the model's size is cut off; default, and 0, which takes back a recipe's: what the checkpoint's image processor does",
    )
    trust_label_order: bool = HfArg(
        default=False, help="class i of the data is class i of the model, although the names differ"
    )
    match_labels: bool = HfArg(
        default=False, help="find each class of the data among the model's by its name, at whichever index it stands"
    )

    def __post_init__(self):
        if self.data_files in ([], ["none"]):  # how the command line takes back what a YAML file names
            self.data_files = None
        # Once, for who looks at another split later must not take these files with it.
        named = [entry if "=" in entry else f"{self.validation_split}={entry}" for entry in self.data_files or []]
        self.data_files = named or None
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ValueError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        self.check_crop()
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise ValueError(f"max_eval_samples must be at least 1, got {self.max_eval_samples}")
        if (self.dataset_name is None) == (self.data_files is None):
            raise ValueError(
                "give either dataset_name or data_files, got "
                f"dataset_name={self.dataset_name!r} and data_files={self.data_files!r}"
            )
        if self.match_labels and self.trust_label_order:
            raise ValueError("match_labels goes by the names and trust_label_order by the indices: give one of them")
        if self.dataset_name == "imagefolder" and not Path(self.data_dir or "").is_dir():
            raise FileNotFoundError(f"imagefolder needs data_dir, a folder that exists; got {self.data_dir!r}")

    def check_crop(self):
        """Refuse a crop_pct that is none; 0 becomes None."""
        if self.crop_pct is not None and not 0.0 <= self.crop_pct <= 1.0:
            raise ValueError(
                f"crop_pct must be in (0, 1], or 0 for what the image processor does, got {self.crop_pct}"
            )
        self.crop_pct = self.crop_pct or None

    def is_on_hub(self):
        return self.dataset_name not in (None, "imagefolder")

    def files_of(self, split):
        """Names of the Parquet files of a split, without their folders; none where there is no such split."""
        found = parse_data_files(self).get(split, []) if self.data_files else []
        return [Path(path).name for path in found]

    def name(self):
        """The data set's Hub name, or the name of the folder that holds it."""
        if self.is_on_hub():
            return self.dataset_name
        if self.data_dir:
            return Path(self.data_dir).resolve().name
        return Path(self.data_files[-1].partition("=")[2]).resolve().parent.name


@dataclass
class DataArguments(ImageArguments):
    """The images of a training: `ImageArguments`, how many are trained on, and how they are augmented."""

    max_train_samples: int | None = HfArg(default=None, help="use at most so many training images")
    min_crop_area: float = HfArg(default=0.35, help="smallest area of a training crop, share of the image")
    horizontal_flip: bool = HfArg(default=True, help="mirror half of the training images")

    def __post_init__(self):
        super().__post_init__()
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"max_train_samples must be at least 1, got {self.max_train_samples}")


def check_held_out(args):
    """Refuse to calibrate a cascade on images that it is trained on: ValueError without a part of train that is held out."""
    if not args.validation_fraction:
        raise ValueError(
            "a cascade is surer of images that it was trained on, and would cost more than its budget on others: hold out a part "
            f"of train to calibrate it on, with validation_fraction above 0, got {args.validation_fraction}"
        )


def split_names(args):
    """Names of the splits there are."""
    if args.data_files:
        return list(parse_data_files(args))
    if args.dataset_name == "imagefolder":
        return list(datasets.load_dataset("imagefolder", data_dir=args.data_dir))
    return datasets.get_dataset_split_names(args.dataset_name, args.dataset_config_name)


def parse_data_files(args):
    """`split=path` strings -> {split: [paths]}."""
    files = {}
    for entry in args.data_files:
        split, _, path = entry.partition("=")
        if not path.endswith(".parquet"):
            raise ValueError(f"data_files must be Parquet files, got {path!r}; for images in folders use imagefolder")
        if "://" not in path and not glob.glob(path):
            raise FileNotFoundError(f"data_files: there is no file {path!r} (split {split!r})")
        files.setdefault(split, []).append(path)
    return files


def load_rows(args, split, labelled=True):
    """One split as a `datasets.Dataset` with image and label, or image alone; raises an error that names what is missing."""
    available = split_names(args)
    if split not in available:
        named = f"; write {split}=FILE" if args.data_files and split == args.train_split else ""
        held_out = "; or hold out a part of train with validation_fraction" if split == args.validation_split else ""
        hint = named or held_out
        raise ValueError(f"there is no split {split!r}, the data has {available}{hint}")
    source = {"path": args.dataset_name, "name": args.dataset_config_name, "data_dir": args.data_dir}
    if args.data_files:  # one split at a time: only the files that are used need to have the columns
        source = {"path": "parquet", "data_files": {split: parse_data_files(args)[split]}}
    try:
        rows = datasets.load_dataset(**source, split=split)
    except ValueError as error:
        if "corresponds to no data" in str(error):  # how `datasets` says that there are no rows
            raise ValueError(f"split {split!r} is empty") from error
        raise
    columns = [args.image_column, args.label_column] if labelled else [args.image_column]
    for column in columns:
        if column not in rows.column_names:
            raise ValueError(f"split {split!r} has no column {column!r}, its columns are {rows.column_names}")
    if len(rows) == 0:
        raise ValueError(f"split {split!r} is empty")
    rows = rows.select_columns(columns)
    image = rows.features[args.image_column]
    if isinstance(image, dict) and "bytes" in image:  # Parquet that was not written by `datasets`
        return rows.cast_column(args.image_column, datasets.Image())
    if not isinstance(image, datasets.Image):
        raise ValueError(f"column {args.image_column!r} must hold images, it holds {image}")
    return rows


def label_names(rows, label_column):
    """Names of the classes of a `datasets.Dataset`, or None if its labels are bare numbers."""
    feature = rows.features[label_column]
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def check_label_range(rows, label_column, num_labels):
    """Raise ValueError unless all labels are integers in 0..num_labels - 1."""
    feature = rows.features[label_column]
    if not isinstance(feature, datasets.ClassLabel) and not str(getattr(feature, "dtype", feature)).startswith(WHOLE):
        raise ValueError(f"column {label_column!r} must hold class indices, whole numbers, it holds {feature}")
    column = rows.select_columns(label_column).with_format("arrow")[:][label_column]
    if column.null_count:
        raise ValueError(f"column {label_column!r} has {column.null_count} rows without a label")
    labels = column.to_numpy()
    wrong = np.unique(labels[(labels < 0) | (labels >= num_labels)])
    if len(wrong):
        raise ValueError(
            f"column {label_column!r} has labels {wrong[:5].tolist()}, but the model has {num_labels} classes "
            f"(0..{num_labels - 1})"
        )


def check_label_order(names, id2label):
    """Raise ValueError if class i of the data is not class i of the model.

    Names are compared without case. The data may have fewer classes, and a few names may be spelled differently, but
    none may stand at another index and at least half must agree. Placeholder names (LABEL_0, ...) agree with all.
    """
    theirs = [_plain(id2label[index]) for index in sorted(id2label)]
    if names is None or theirs == [f"label_{index}" for index in range(len(theirs))]:
        return
    ours = [_plain(name) for name in names]
    positions = {}
    for index, name in enumerate(theirs):
        positions.setdefault(name, set()).add(index)
    moved = [index for index, name in enumerate(ours) if index not in positions.get(name, {index})]
    agreeing = sum(index in positions.get(name, ()) for index, name in enumerate(ours))
    if moved or 2 * agreeing < len(ours):
        index = moved[0] if moved else next(i for i, name in enumerate(ours) if name not in positions)
        model_name = repr(id2label[index]) if index in id2label else "no class"
        raise ValueError(
            f"label {index} is {names[index]!r} in the data but {model_name} in the model "
            f"({agreeing} of {len(ours)} names agree): the labels mean different things. Train a new classifier "
            "(new_classifier), or, if only the names differ, say so (trust_label_order), or, if only the order does, go "
            "by the names (match_labels)"
        )


def matched_labels(names, id2label):
    """For each class of the data the index of the model's class of the same name, compared without case.

    Raises:
        ValueError: labels without names, or a name that is not the one of exactly one class of the model.
    """
    if names is None:
        raise ValueError("match_labels needs names of the classes, and the labels of the data are bare numbers")
    theirs = [_plain(id2label[index]) for index in sorted(id2label)]
    wrong = [name for name in names if theirs.count(_plain(name)) != 1]
    if wrong:
        raise ValueError(
            f"match_labels: {len(wrong)} of {len(names)} names are no class of the model, or several: {wrong[:5]}"
        )
    return [theirs.index(_plain(name)) for name in names]


def _plain(name):
    return str(name).strip().casefold()
