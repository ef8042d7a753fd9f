"""Model cards beside models that no training has just left: calibrated without labels, or measured once more, by the clock too."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..model.configuration_dynvit import DynViTConfig
from .calibration_results import Calibration, calibration_rows
from .model_card import write_model_card
from .pictures import AGENT_PICTURES
from .plots import drawn
from .publish import LOCAL_DATA, PICTURES, draw_pictures, training_rows
from .results import Training
from .schema import read, write


logger = logging.get_logger(__name__)

CARD, TRAINED, CALIBRATED = "README.md", "results.json", "calibration.json"
LICENCE = ("license", "license_name", "license_link", "base_model")
KEPT = (*LICENCE, "datasets")  # of the head of a card


def describe_calibration(model, found, folder):
    """Write calibration.json, and a card that says what the cost is and on how many images it was brought there.

    Args:
        model: as it was saved in `folder`. found: a `Calibration`.
    """
    folder = Path(folder)
    write(folder / CALIBRATED, found)
    write_model_card(model, found.to_json(), folder, training=calibration_rows(found), **found.terms)


def before(path):
    """(rows, terms) of what is known of a model in a folder: for its card, and what `write_model_card` is told of licences.

    Terms are what results.json or calibration.json say, or else the head of the card. Empty for a model of the Hub.
    """
    record, head = _record(path), _head(Path(path) / CARD)
    terms = {name: head.get(name) for name in KEPT}
    if record is None:
        return {}, terms
    rows = training_rows(record) if isinstance(record, Training) else calibration_rows(record)
    return rows, terms | {name: value for name, value in record.terms.items() if value is not None}


def licence_of(path):
    """Licence and base model in the head of the card of a model in a folder, as `write_model_card` takes them; None: not said."""
    head = _head(Path(path) / CARD)
    return {name: head.get(name) for name in LICENCE}


def _head(file):
    """What stands in the head of a card, as a dict; {} without a card, or with one whose head nobody can read."""
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict() if file.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(f"the head of {file} cannot be read, and is not carried on: {error}")
        return {}


def _record(path):
    """The `Calibration` or `Training` that a recipe has left beside a model; None, and a warning, where it cannot be read."""
    for name in (CALIBRATED, TRAINED):
        file = Path(path) / name
        if file.is_file():
            try:
                found = read(file)
            except ValueError as error:  # of another version, or a file of somebody else's
                logger.warning(f"the card does not say how the model was trained: {error}")
                return None
            return found if isinstance(found, (Calibration, Training)) else None
    return None


def check_card(path):
    """Raise ValueError for a model that no card can be written beside: one of the Hub, or with a card that would be lost."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"a card is written beside a model in a folder, and {path!r} is none")
    file = folder / CARD
    if file.is_file() and _record(folder) is None:
        raise ValueError(
            f"{file} says what would be lost, for there is no {TRAINED} or {CALIBRATED} of this version beside it: move it away, and a "
            "new card is written"
        )


def describe_evaluation(entrant, found, folder, on_hub=False):
    """Write the card of a model anew, with what an evaluation has measured, and pictures of its decisions.

    Args:
        entrant: the `Entrant` that was measured, whose images are shown. found: its `Evaluation`.
        folder: where the model lies; what its training or calibration has left there stays on the card.
        on_hub: whether others know the data set by the name that `found` has.
    """
    folder, model = Path(folder), entrant.model
    rows, terms = before(folder)
    pictures = {name: caption for name, caption in AGENT_PICTURES.items() if (folder / name).is_file()}
    if model.config.gates:
        shown = PICTURES if drawn(draw_pictures, model, entrant.images, found.usage, folder) else {}
        pictures |= {name: caption for name, caption in shown.items() if found.usage or name != "usage.png"}
    plain = PreTrainedConfig.get_config_dict(folder)[0].get("model_type") != DynViTConfig.model_type
    content = found.to_json() | ({} if on_hub else {"dataset": LOCAL_DATA})
    write_model_card(model, content, folder, pictures=pictures, training=rows, plain=plain, **terms)
