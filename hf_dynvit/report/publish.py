"""What a finished training run is published with: pictures, the model card, and all of it on the Hub."""

from pathlib import Path

from huggingface_hub import create_repo, upload_folder
from transformers.utils import logging

from .model_card import write_model_card
from .pictures import AGENT_PICTURES, draw_agent, first_images, show_decisions
from .plots import drawn, plot_usage


logger = logging.get_logger(__name__)

PICTURES = {
    "decisions.png": "What is computed of some of the images",
    "usage.png": "Usage of each layer on the validation images",
}
EXTREMES = {"cheapest_dearest.png": "What is computed of the four cheapest and the four dearest images"}
SETTINGS = ("learning_rate", "weight_decay", "lr_scheduler_type", "optim")
GATE_SETTINGS = ("objective", "gate_learning_rate")
RUN = ("epochs", "steps", "images_seen", "batch_size", "processes", "train_seconds")
LOCAL_DATA = "a local data set"  # the name of a folder is its user's, and says nothing to others
NOT_PUBLISHED = ["checkpoint-*", "runs/*", "training_args.bin", "trainer_state.json"]
NOT_PUBLISHED += ["results.json", "calibration.json"]  # they name folders


def describe(model, dataset, results, folder, agent=None, **card):
    """Write the model card, with pictures where there are gates or an agent, and matplotlib.

    Args:
        model: the model that was trained.
        dataset: an `ImageDataset` prepared as for evaluation; its first eight images are shown.
        results: the `Training`.
        folder: where the model is saved.
        agent: the `PatchAgent` of the training, or None.
        card: given on to `write_model_card`; without `datasets`, Hub ids, the card does not name the data.
    """
    pictures = {}
    if model.config.gates:
        found = PICTURES if drawn(draw_pictures, model, dataset, results.usage, folder) else {}
        pictures |= {name: caption for name, caption in found.items() if results.usage or name != "usage.png"}
    if agent is not None and drawn(draw_agent, agent, dataset, folder):
        pictures |= AGENT_PICTURES
    content = results.to_json() | ({} if card.get("datasets") else {"dataset": LOCAL_DATA})
    write_model_card(model, content, folder, pictures=pictures, training=training_rows(results), **card)


def training_rows(results):
    """Name -> value for the card: what the `Training` was told, and how long it was."""
    rows = {name: results.option(name) for name in SETTINGS} | {name: getattr(results, name) for name in RUN}
    if any(results.learned.values()):  # nothing has taught a rule
        own = {name: results.option(name) for name in GATE_SETTINGS}
        rows |= {name: "the body's" if value is None else value for name, value in own.items()}
    if results.agent is not None:
        options = ", ".join(f"{name} {value}" for name, value in results.agent.options.items())
        rows |= {"agent": results.agent.name, "its options": options or None}
        rows["patches in training"] = f"{results.agent.kept:.1f} of {results.agent.patches}"
    return rows


def draw_pictures(model, dataset, usage, folder):
    """decisions.png and usage.png, from the first eight images."""
    images, labels, shown = first_images(dataset)
    titles = [model.config.id2label[label] for label in labels]
    show_decisions(model, images, folder / "decisions.png", titles=titles, **shown)
    if usage:  # that of a cascade is not one of layers
        plot_usage(usage, folder / "usage.png")


def push(folder, model_id=None, private=None):
    """Model, code, card and pictures to the Hub, without checkpoints, arguments or paths of this machine.

    Args:
        folder: what to push.
        model_id: Hub id, the folder's name in your namespace unless given.
        private: whether a new repository is private.
    """
    folder = Path(folder)
    repo = create_repo(model_id or folder.resolve().name, private=private, exist_ok=True)
    upload_folder(
        repo_id=repo.repo_id, folder_path=folder, ignore_patterns=NOT_PUBLISHED, commit_message="Trained model"
    )
