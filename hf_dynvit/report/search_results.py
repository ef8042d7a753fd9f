"""What a search for masks leaves: the front in three forms, and the picked mask as a model."""

import csv

from ..measure.files import write_json
from ..search.export import burn_in
from .plots import front_plot


def write_front(results, folder):
    """front.json, front.csv and front.png in `folder`, a `Path`, of what recipes/search.py found."""
    write_json(folder / "front.json", results)
    with (folder / "front.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = [name for name in results["front"][0] if name not in ("bits", "layer_mask", "reported")]
        writer.writerow(["bits", *names, *(f"reported_{name}" for name in names)])
        for point in results["front"]:
            writer.writerow([point["bits"], *(point[name] for name in names), *(point["reported"][n] for n in names)])
    front_plot(results, folder / "front.png")


def save_picked(model, processor, picked, folder, policy, burnt_in):
    """The model under the picked mask, and without the layers it never runs.

    Args:
        model: the `DynViTForImageClassification` that was searched; its mask, and maybe its gates, change.
        processor: its image processor, saved beside it.
        picked: a point of the front.
        policy: "act": gates stay, "process": they go, for the mask was searched without them.
        burnt_in: whether to save it without the unused layers too.
    """
    model.config.layer_mask = picked["layer_mask"]
    if policy == "process" and model.config.gates:
        for gates in model.gates:
            gates.clear()
        model.config.gates = None
    model.save_pretrained(folder / "picked")
    processor.save_pretrained(folder / "picked")
    if burnt_in:
        burn_in(model).save_pretrained(folder / "burnt_in")
        processor.save_pretrained(folder / "burnt_in")
