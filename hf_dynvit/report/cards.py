"""Model cards beside models that no training has just left: calibrated without labels, or measured once more, by the clock too."""

from pathlib import Path

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..model.configuration_dynvit import DynViTConfig
from .model_card import write_model_card
from .publish import LOCAL_DATA, PICTURES, draw_pictures, drawn, training_rows
from .results import Calibration, Training
from .schema import read, write


logger = logging.get_logger(__name__)

CARD, TRAINED, CALIBRATED = "README.md", "results.json", "calibration.json"


def describe_calibration(model, found, folder):
    """Write calibration.json, and a card that says what the cost is and on how many images it was brought there.

    Args:
        model: as it was saved in `folder`. found: a `Calibration`.
    """
    folder = Path(folder)
    write(folder / CALIBRATED, found)
    content = found.to_json() | {"dataset": found.on_hub or LOCAL_DATA}
    write_model_card(model, content, folder, training=calibration_rows(found), **found.terms)


def calibration_rows(found):
    """Name -> value for the card: what was done before, and this calibration."""
    own = {
        "calibrated on": f"{found.images:,} images ({found.split}), whose labels were not read",
        "mean cost on them": round(found.cost, 3),
        "budgets": ", ".join(map(str, found.budgets)) or None,
        "milliseconds": found.milliseconds,
        "seed of the calibration": found.seed,
    }
    return found.before | {name: value for name, value in own.items() if value is not None}


def before(path):
    """(rows, terms) of what is known of a model in a folder: for its card, and what `write_model_card` is told of licences.

    Empty for a model of the Hub or a folder that no recipe has left.
    """
    for name, rows in ((CALIBRATED, calibration_rows), (TRAINED, training_rows)):
        file = Path(path) / name
        if not file.is_file():
            continue
        try:
            found = read(file)
        except ValueError as error:  # of another version, or a file of somebody else's
            logger.warning(f"the card does not say how the model was trained: {error}")
            return {}, {}
        if isinstance(found, (Calibration, Training)):
            return rows(found), found.terms
    return {}, {}


def check_card(path):
    """Raise ValueError for a model that no card can be written beside: one of the Hub, or with a card of somebody else's."""
    if not Path(path).is_dir():
        raise ValueError(f"a card is written beside a model in a folder, and {path!r} is none")
    file = Path(path) / CARD
    if file.is_file() and "dynvit" not in (ModelCard.load(file).data.tags or []):
        raise ValueError(f"{file} was not written here: move it away, and a card is written in its place")


def describe_evaluation(entrant, found, folder, hub_data=None):
    """Write the card of a model anew, with what an evaluation has measured, and pictures of its decisions.

    Args:
        entrant: the `Entrant` that was measured, whose images are shown. found: its `Evaluation`.
        folder: where the model lies; what its training or calibration has left there stays on the card.
        hub_data: Hub id of the images, None for local ones.
    """
    folder, model = Path(folder), entrant.model
    rows, terms = before(folder)
    pictures = {}
    if model.config.gates:
        shown = drawn(PICTURES, draw_pictures, model, entrant.images, found.usage, folder)
        pictures = {name: caption for name, caption in shown.items() if found.usage or name != "usage.png"}
    plain = PreTrainedConfig.get_config_dict(folder)[0].get("model_type") != DynViTConfig.model_type
    content = found.to_json() | ({} if hub_data else {"dataset": LOCAL_DATA})
    write_model_card(model, content, folder, pictures=pictures, training=rows, plain=plain, **terms)
