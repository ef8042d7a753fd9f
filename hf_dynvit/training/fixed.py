"""Merges in a number that is known ahead: compilers, and runtimes that prepare each operator anew where a size changes, want it.

A model of fixed sizes gives up what an image of few details saves, and keeps what is learned: which tokens must not leave.
"""

import torch

from ..model.gate_merge import MergeGate


def check_fixable(model):
    """Raise ValueError for a model in which something else than merge gates says how many tokens there are, or nothing does."""
    drops = {type(gate).__name__ for gates in model.gates for gate in gates.values() if gate.drop}
    if drops != {MergeGate.__name__}:
        raise ValueError(
            f"merges can be fixed where merge gates alone drop tokens, here it is {sorted(drops) or 'nothing'}"
        )


@torch.no_grad()
def fix_merges(model, pixel_values):
    """Every merge gate merges in each image what it has merged on average of these, from here on (`merged` of its gate).

    The configuration says so, and a table of budgets is dropped: the cost is the same for every image, and no threshold
    changes it.

    Args:
        model: of one look, in evaluation mode, changed in place. pixel_values: float32 (images, channels, height, width).

    Returns:
        List of L ints, the merges of each layer.

    Raises:
        ValueError: as `check_fixable`, a cascade, whose looks merge differently much, or no images.
    """
    check_fixable(model)
    if model.config.cascade is not None or not len(pixel_values):
        raise ValueError(
            f"merges are fixed in a model of one look, by images: got cascade {model.config.cascade}, {len(pixel_values)} images"
        )
    left = torch.zeros(len(model.gates))
    for image in pixel_values.split(1):
        kept = [decided.attention_tokens for decided in model(image, return_dict=True).decisions]
        left += torch.tensor([model.tokens_run if keep is None else int(keep.sum()) for keep in kept])
    left = [model.tokens_run, *(left / len(pixel_values)).round().int().tolist()]
    merged = [before - after for before, after in zip(left, left[1:], strict=False)]
    for gates, count in zip(model.gates, merged, strict=True):
        for gate in gates.values():
            if type(gate) is MergeGate:
                gate.merged = count
    model.drop_budgets()
    model.config.gates = fixed_entries(model.config.gates, merged)
    return merged


def fixed_entries(gates, merged):
    """Gates of a configuration in which those that merge do so as often in every image: a list with an entry a layer.

    Args:
        gates: list of dicts. merged: for each layer how many tokens leave.
    """
    found = []
    for entry in gates:
        layers = entry.get("layers", range(len(merged))) if entry["gate"] == "merge" else []
        found += [{**entry, "merged": merged[layer], "layers": [layer]} for layer in layers] or [entry]
    return found
