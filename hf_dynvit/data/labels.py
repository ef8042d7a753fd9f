"""Do the labels of a data set mean to a model what the data set says? Checked before any work starts."""

import datasets
import numpy as np


def label_names(rows, label_column):
    """Names of the classes of a `datasets.Dataset`, or None if its labels are bare numbers."""
    feature = rows.features[label_column]
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def check_label_range(rows, label_column, num_labels):
    """Raise ValueError unless all labels are integers in 0..num_labels - 1."""
    feature = rows.features[label_column]
    if not isinstance(feature, datasets.ClassLabel) and not str(getattr(feature, "dtype", feature)).startswith("int"):
        raise ValueError(f"column {label_column!r} must hold class indices, it holds {feature}")
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
            "(new_classifier), or, if only the names differ, say so (trust_label_order)"
        )


def _plain(name):
    return str(name).strip().casefold()
