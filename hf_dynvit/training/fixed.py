"""Merges in a number that is known ahead: compilers, and runtimes that prepare each operator anew where a size changes, want it.

A model of fixed sizes gives up what an image of few details saves within a look, and keeps what is learned: which tokens must
not leave, and of a cascade how many looks an image needs.

Letters: L layers, K looks.
"""

import torch

from ..measure.looks import each_look
from ..model.cascade import check_rising
from ..model.gate_merge import MergeGate
from ..model.resolution import tokens_run


AT_ONCE = 32  # images of a forward


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

    The configuration says so, and a table of budgets is dropped: within a look the cost is the same for every image, and no
    threshold changes it. The looks of a cascade each have numbers of their own, and what they cost, at most 1, becomes their
    budget; `calibrate` then finds anew from which confidence an image is done.

    Args:
        model: in evaluation mode, changed in place. pixel_values: float32 (images, channels, height, width).

    Returns:
        For each layer how many merge, an int, or of a cascade a list of K ints.

    Raises:
        ValueError: as `check_fixable`, no images, or looks that do not begin with the cheapest; the model stays what it was.
    """
    check_fixable(model)
    if not len(pixel_values):
        raise ValueError("merges are fixed by images, got none")
    looks = model.config.cascade
    each = [_merged(model, pixel_values, look) for look in ([None] if looks is None else range(len(looks)))]
    merged = each[0] if looks is None else [list(counts) for counts in zip(*each, strict=True)]
    before = _set(model, merged)
    if looks is not None:
        try:
            costs = [min(1.0, cost) for cost in each_look(model, pixel_values.split(AT_ONCE)).spent.mean(1).tolist()]
            check_rising(costs)
        except BaseException:  # whatever stops it: gates and configuration must not differ
            _set(model, before)
            raise
        model.config.cascade = [{**look, "budget": round(cost, 4)} for look, cost in zip(looks, costs, strict=True)]
    model.drop_budgets()
    model.config.gates = fixed_entries(model.config.gates, merged)
    return merged


def _set(model, merged):
    """Give the merge gates of each layer their number; returns those they had."""
    before = []
    for gates, count in zip(model.gates, merged, strict=True):
        merging = [gate for gate in gates.values() if type(gate).__name__ == MergeGate.__name__]
        before.append(merging[0].merged if merging else None)
        for gate in merging:
            gate.merged = count
    return before


def _merged(model, pixel_values, look):
    """For each layer how many tokens leave on average: L ints."""
    tokens, left = tokens_run(model.config, look), torch.zeros(len(model.gates))
    for image in pixel_values.split(1):
        kept = [decided.attention_tokens for decided in model(image, look=look, return_dict=True).decisions]
        left += torch.tensor([tokens if keep is None else int(keep.sum()) for keep in kept])
    left = [tokens, *(left / len(pixel_values)).round().int().tolist()]
    return [before - after for before, after in zip(left, left[1:], strict=False)]


def fixed_entries(gates, merged):
    """Gates of a configuration in which those that merge do so as often in every image: a list with an entry a layer.

    Args:
        gates: list of dicts. merged: for each layer how many tokens leave, in each look where there are several.
    """
    found = []
    for entry in gates:
        layers = entry.get("layers", range(len(merged))) if entry["gate"] == "merge" else []
        found += [{**entry, "merged": merged[layer], "layers": [layer]} for layer in layers] or [entry]
    return found
