"""What a search for masks leaves: the front in three forms, and the picked mask as a model."""

from pandas import DataFrame

from ..search.export import burn_in, hold_open
from .plots import drawn, front_plot
from .schema import write


def write_front(search, folder):
    """front.json, front.csv and front.png in `folder`, a `Path`, of a `Search`; returns the content of the first."""
    content = write(folder / "front.json", search)
    chosen = DataFrame(search.front).drop(columns=["layer_mask", "reported"])
    reported = DataFrame([point["reported"] for point in search.front]).add_prefix("reported_")
    chosen.join(reported).to_csv(folder / "front.csv", index=False)
    drawn(front_plot, search, folder / "front.png")
    return content


def save_picked(model, processor, picked, folder, policy, burnt_in):
    """The model under the picked mask, and without the layers it never runs.

    Args:
        model: the `DynViTForImageClassification` that was searched; its mask, and maybe its gates, change.
        processor: its image processor, saved beside it.
        picked: a point of the front.
        policy: "act": gates stay, "process": they go, for the mask was searched without them; bypasses stay.
        burnt_in: whether to save it without the unused layers too.
    """
    model.drop_budgets().config.layer_mask = picked["layer_mask"]
    if policy == "process" and model.config.gates:
        hold_open(model)
    model.save_pretrained(folder / "picked")
    processor.save_pretrained(folder / "picked")
    if burnt_in:
        burn_in(model).save_pretrained(folder / "burnt_in")
        processor.save_pretrained(folder / "burnt_in")
