"""Datasets that a recipe trains and measures on: loaded, checked against the model, split, transformed."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from transformers import TrainerCallback

from .rows import check_label_order, check_label_range, label_names, load_rows, matched_labels, split_names
from .transforms import EvalTransform, TrainTransform, output_size


CALIBRATION_POOL = 4096  # rows offered for calibration, drawn at random: files are often sorted by class


class ImageDataset(torch.utils.data.Dataset):
    """Rows as {"pixel_values": float32 (channels, height, width), "labels": int}; an unreadable image raises ValueError.

    Without a `label_column` there are no labels.

    What an augmentation draws depends on (seed, epoch, row) alone: a resumed run, which does not prepare the batches
    that it skips and has others prepared ahead, sees the same pixels as an uninterrupted one, on any number of
    processes and loader workers.
    """

    def __init__(self, rows, transform, image_column, label_column, seed=0, classes=None):
        self.rows, self.transform, self.seed = rows, transform, seed
        self.classes = classes  # label -> class of the model; None: the same
        self.image_column, self.label_column = image_column, label_column
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader workers must see it change

    def set_epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(f"row {index} of {len(self)}")  # where a plain loop over the images ends
        draw = random.Random(f"{self.seed}/{int(self._epoch)}/{index}")
        try:
            row = self.rows[index]
            pixels = self.transform(row[self.image_column], draw)
        except Exception as error:  # whatever a decoder raises of damaged bytes
            raise ValueError(
                f"the image in row {self.row_of_split(index)} of split {str(self.rows.split)!r}, column "
                f"{self.image_column!r}, cannot be read: {type(error).__name__}: {error}"
            ) from error
        if self.label_column is None:
            return {"pixel_values": pixels}
        label = row[self.label_column]
        return {"pixel_values": pixels, "labels": label if self.classes is None else self.classes[label]}

    def row_of_split(self, index):
        """Number of a row in the data as they were loaded: before a part was held out, or some were drawn."""
        chosen = self.rows._indices
        return index if chosen is None else chosen.column(0)[index].as_py()


class SetEpoch(TrainerCallback):
    """Tells the training data which epoch it is; accelerate does so only without resuming and on one process."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))


@dataclass
class ImageData:
    """What a recipe trains and measures on; without a held-out part the validation split is selection, too."""

    train: ImageDataset  # augmented
    selection: ImageDataset  # to choose on while training: the held-out part of train
    validation: ImageDataset  # to report on: the validation split, or the held-out part where the data has none
    calibration: ImageDataset  # training images that are not augmented: the held-out part, or some of train
    reported_split: str  # what `validation` is, in words
    names: list | None  # of the classes
    num_labels: int

    def for_trainer(self):
        """What a `Trainer` takes of it, as keyword arguments."""
        return {"train_dataset": self.train, "eval_dataset": self.selection, "callbacks": [SetEpoch()]}


def load_image_data(args, processor, config, new_classifier=False, seed=0):
    """Load, check and split the images of a training run.

    Args:
        args: `DataArguments`.
        processor: the checkpoint's image processor.
        config: the checkpoint's `ViTConfig`.
        new_classifier: the model will get new classes from the data; its own are not compared.
        seed: of the held-out part, of `max_*_samples` and of the augmentation.

    Raises:
        ValueError, FileNotFoundError: files, splits, columns, labels or sizes that do not fit, each named.
    """
    mode = check_processor(processor, config)
    splits = [args.train_split] + ([] if args.validation_fraction else [args.validation_split])
    available = split_names(args)
    if args.validation_fraction and args.validation_split in available:
        splits.append(args.validation_split)
    rows = {split: load_rows(args, split) for split in splits}
    names = label_names(rows[args.train_split], args.label_column)
    for other in rows.values():
        if label_names(other, args.label_column) != names:
            raise ValueError(f"splits {splits} have different class names")
    train = rows[args.train_split]
    num_labels = config.num_labels
    if new_classifier:
        num_labels = len(names) if names else int(max(train.with_format("numpy")[:][args.label_column])) + 1
    for other in rows.values():
        check_label_range(other, args.label_column, num_labels)
    if new_classifier and args.match_labels:
        raise ValueError(
            "match_labels finds classes of the model by name, and new_classifier replaces them: give one of them"
        )
    classes = None if new_classifier else classes_of(args, names, config)

    held_out = None
    if args.validation_fraction:
        parts = train.train_test_split(test_size=args.validation_fraction, seed=seed)
        train, held_out = parts["train"], sample(parts["test"], args.max_eval_samples, seed)
    train = sample(train, args.max_train_samples, seed)
    reported = args.validation_split in rows
    validation = sample(rows[args.validation_split], args.max_eval_samples, seed) if reported else held_out
    calibration = sample(train if held_out is None else held_out, CALIBRATION_POOL, seed)

    columns, plain = (args.image_column, args.label_column, seed, classes), EvalTransform(processor, mode)
    return ImageData(
        train=ImageDataset(train, TrainTransform(processor, mode, args.min_crop_area, args.horizontal_flip), *columns),
        selection=ImageDataset(validation if held_out is None else held_out, plain, *columns),
        validation=ImageDataset(validation, plain, *columns),
        calibration=ImageDataset(calibration, plain, *columns),
        reported_split=args.validation_split if reported else f"held out of {args.train_split}",
        names=names,
        num_labels=num_labels,
    )


def load_validation(args, processor, config, seed=0, labelled=True):
    """The validation split alone, prepared as for evaluation; errors as in `load_image_data`.

    Of the split to train on it is the part that a training with this seed and `validation_fraction` holds out. Unlabelled, no
    label is read.
    """
    mode = check_processor(processor, config)
    rows, label_column, classes = load_rows(args, args.validation_split, labelled), None, None
    if labelled:
        label_column = args.label_column
        check_label_range(rows, label_column, config.num_labels)
        classes = classes_of(args, label_names(rows, label_column), config)
    if args.validation_fraction and args.validation_split == args.train_split:
        rows = rows.train_test_split(test_size=args.validation_fraction, seed=seed)["test"]
    rows = sample(rows, args.max_eval_samples, seed)
    return ImageDataset(rows, EvalTransform(processor, mode), args.image_column, label_column, seed, classes)


def classes_of(args, names, config):
    """The model's class of each label, None if they are the same; ValueError if labels and classes do not fit."""
    if args.match_labels:
        return matched_labels(names, config.id2label)
    if not args.trust_label_order:
        check_label_order(names, config.id2label)
    return None


def check_processor(processor, config):
    """The PIL mode of the model's images; raises ValueError if processor and model differ in size."""
    modes = {1: "L", 3: "RGB"}
    if config.num_channels not in modes:
        raise ValueError(f"images have 1 or 3 channels, the model takes {config.num_channels}")
    wanted = tuple(np.broadcast_to(config.image_size, 2).tolist())
    if output_size(processor) != wanted:
        raise ValueError(
            f"the image processor gives images of {output_size(processor)} (height, width), the model takes {wanted}"
        )
    return modes[config.num_channels]


def sample(rows, count, seed):
    """`count` rows at random, or all of them if there are no more."""
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=seed).select(range(count))
