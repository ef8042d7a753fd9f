"""A table of what a model said of each image and what it spent on it, to look at the images behind a mean."""

from pandas import DataFrame


def each_image(found, images, names):
    """A row for each image: its row in the split, the label, the class that was read and its probability, and the cost.

    Args:
        found: an `Evaluated` of images with one label each. images: the `ImageDataset` of them. names: class -> name.

    Returns:
        `DataFrame` with the columns row, label, predicted, probability, right, cost, and of a cascade looks.

    Raises:
        ValueError: several labels for an image.
    """
    if found.labels.dim() != 1:
        raise ValueError(f"a row is for an image with one label, got labels of shape {tuple(found.labels.shape)}")
    probability, read = found.logits.softmax(-1).max(-1)
    columns = {
        "row": [images.row_of_split(index) for index in range(len(read))],
        "label": [names[label] for label in found.labels.tolist()],
        "predicted": [names[label] for label in read.tolist()],
        "probability": probability.numpy(),
        "right": (read == found.labels).numpy(),
        "cost": found.cost.numpy(),
    }
    return DataFrame(columns | ({} if found.looks is None else {"looks": found.looks.numpy()}))
