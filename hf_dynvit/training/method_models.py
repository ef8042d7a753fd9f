"""The model of a method at a budget, before any training: its amount or its thresholds, sizes and looks as they are best."""

from functools import partial

import torch

from ..model.modeling_dynvit import DynViTForImageClassification
from .calibration import calibrate, mean_cost
from .closed_form import fit_gates
from .fixed import fix_merges
from .importance import fit_importance
from .looks import choose_looks, looks_for
from .methods import DENSE, METHODS, WORKING, places
from .resolution import choose_resolution, nearest_of, nearest_size, sizes_for, within
from .timed_calibration import OutOfReach


STEPS = 12  # of bisection


def prepare(name, vit, budget, batches, last_layer=None):
    """A model that spends a mean cost by a method, before any training of its backbone.

    Args:
        vit: a `ViTForImageClassification`. batches: list of `pixel_values` (B, channels, height, width), on which amounts
            and thresholds are found and importance is learned; no labels are used. last_layer: as in `DynViTConfig`, of all but the
            dense model.

    Raises:
        OutOfReach: a budget beyond the method's amounts.
    """
    method = METHODS[name]
    if method.resizes == "alone":
        size = nearest_size(vit.config, budget, last_layer)
        return DynViTForImageClassification.from_vit(vit, resolution=size, last_layer=last_layer)
    if method.placed:
        return _placed(name, vit, budget, batches, last_layer)
    amount = None if method.least is None else _amount(name, method.gates, vit, budget, batches[:1], last_layer)
    gates = method.gates(vit.config, amount)

    def build(resolution, budget=budget, looks=None, importance=method.importance, as_many=method.as_many):
        options = {"resolution": resolution, "cascade": looks, "last_layer": last_layer}
        model = DynViTForImageClassification.from_vit(vit, gates=gates, budget=budget, **options)
        if method.fitted:
            fit_gates(model, batches, budget, WORKING)
            return model
        if importance:
            fit_importance(model, batches)
        if method.least is None:
            calibrate(model, batches, budget)
        if as_many:
            fix_merges(model, torch.cat(batches))
        if as_many and looks:
            calibrate(model, batches, budget)
        return model

    dense = DynViTForImageClassification.from_vit(vit)
    if name == DENSE:
        return dense
    if method.looks:
        first = METHODS[method.twin or name]
        tried = partial(build, importance=first.importance, as_many=first.as_many)
        choose = (
            choose_looks(dense, tried, vit.config, budget, batches, method.looks)
            if gates
            else looks_for(vit.config, budget, False, method.looks)
        )
        return build(None, looks=choose)
    if method.resizes == "never":
        return build(None)
    _, trials = choose_resolution(dense, build, sizes_for(vit.config, budget), batches)
    return nearest_of(within(trials, budget)).model


def _placed(name, vit, budget, batches, last_layer):
    """The model of a method whose gates stand where its predictions are nearest to the dense model's, as sizes are chosen."""
    amounts, refused = {}, None

    def gates(layers, config, amount):
        return [{**entry, "layers": list(layers)} for entry in METHODS[name].gates(config, amount)]

    def build(layers):
        options = {"gates": gates(layers, vit.config, amounts[layers]), "budget": budget, "last_layer": last_layer}
        return DynViTForImageClassification.from_vit(vit, **options)

    for layers in map(tuple, places(vit.config.num_hidden_layers)):
        try:
            amounts[layers] = _amount(name, partial(gates, layers), vit, budget, [batches[0][:1]], last_layer)
        except OutOfReach as error:
            refused = error
    if not amounts:
        raise refused
    with torch.random.fork_rng():  # the place of a method that draws is the same in each start
        torch.manual_seed(0)
        best, _ = choose_resolution(DynViTForImageClassification.from_vit(vit), build, amounts, batches)
    return best.model


def _amount(name, gates_for, vit, budget, batches, last_layer):
    """The amount at which a method costs nearest to the budget; gates_for: (configuration, amount) -> its gates."""
    method = METHODS[name]

    def cost(amount):
        gates = gates_for(vit.config, amount)
        return mean_cost(DynViTForImageClassification.from_vit(vit, gates=gates, last_layer=last_layer), batches)

    low, high = method.least, 1.0
    least, most = cost(low), cost(high)
    if not least <= budget <= most:
        raise OutOfReach(f"a budget of {budget} is out of reach of {name}: its costs are {least:.3f} to {most:.3f}")
    best = min((abs(least - budget), low), (abs(most - budget), high))
    for _ in range(STEPS):
        middle = round((low + high) / 2, 4)
        found = cost(middle)
        best = min(best, (abs(found - budget), middle))
        low, high = (middle, high) if found < budget else (low, middle)
    return best[1]
