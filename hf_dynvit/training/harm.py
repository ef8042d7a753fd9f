"""Gates of heads and sub-layers in closed form: their scores learn how much skipping each harms the prediction of an image.

What one head or sub-layer is worth to an image is measured by leaving it out, alone (as Michel et al., 2019, do for heads,
there for all inputs at once): the Kullback-Leibler divergence of the prediction without it from the prediction with it, per
part of the computation that it saves. The gate predicts its logarithm from the token that it reads anyway, by ridge
regression. No labels are used, and the backbone stays as it is.

Letters: B images, D channels, E decisions of a gate.
"""

from contextlib import contextmanager

import torch
from tqdm.auto import tqdm

from ..measure.precision import in_own_precision
from ..measure.thresholds import biases_of, set_biases
from ..model.cost import dense_macs, layer_costs
from ..model.gate_random import draws_at_random
from ..objectives.gate_kinds import unit_gates
from .least_squares import Moments


FAR = 1e4  # added to a logit, it decides
LEAST = 1e-9  # nats: a divergence of exactly 0 has a logarithm too
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)  # relative to the mean variance of a feature


def fit_harm(model, batches, strength=1.0, per_image=True):
    """Set the scores of all gates of heads and sub-layers to what skipping costs the prediction, per cost saved.

    It is measured beside what the gates of tokens decide now, and the bypasses as they are: fit importance and bypasses,
    and calibrate, before. Thresholds are to be set afterwards (`share_budget`): all of these gates decide on one scale, on
    which 0 is the mean of all.

    Args:
        model: a model of one look with learned gates of heads or sub-layers. A table of budgets is dropped.
        batches: `pixel_values` (B, channels, height, width) of a hundred images or more, a list; each is run once for
            each head and sub-layer that is decided.
        strength: what one unit of log-harm (a factor e in nats per cost) adds to the logit.
        per_image: no: every image has the mean harm of each unit, so that all skip the same, as under a mask: the twin that
            decides nothing per image.

    Returns:
        (layer, slot) -> share of the variance of log-harm over images, all units of the gate together, that the scores
        explain on half of the images when their weights are fitted to the other half.

    Raises:
        ValueError: as `check_units` and `check_precision`, fewer than two images, or a strength that is negative or not
            finite.
    """
    gates = check_units(model)
    check_precision(model)
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be finite and at least 0, got {strength!r}")
    batches = check_images(batches)
    model.drop_budgets()
    was_training = model.training
    model.eval()
    halves, seen = [{place: Moments() for place in gates} for _ in range(2)], 0
    try:
        # In 16 bits the noise of the logits is more than many a head is worth.
        with torch.no_grad(), in_own_precision(model), _held(gates):
            for pixel_values in tqdm(batches, desc="leaving out heads and sub-layers", leave=False):
                for place, (reads, harm) in _harm(model, gates, pixel_values).items():
                    for half, moments in enumerate(halves):
                        every = slice((half - seen) % 2, None, 2)
                        moments[place].add(reads[every], harm[every])
                seen += len(pixel_values)
    finally:
        model.train(was_training)
    return _set_scores(gates, halves, strength, per_image)


def check_units(model):
    """As `unit_gates`.

    Raises:
        ValueError: no such gates, or a model whose harm cannot be measured: a cascade, one under a mask of layers, with
            gates that draw at random, or with anything but one label of several classes for an image.
    """
    gates, config = unit_gates(model), model.config
    if not gates or config.cascade is not None or config.layer_mask is not None:
        raise ValueError(
            "what skipping costs is fitted for learned gates of heads and sub-layers, in a model of one look without a mask of "
            f"layers: got gates {config.gates}, cascade {config.cascade}, layer_mask {config.layer_mask}"
        )
    if draws_at_random(model):
        raise ValueError(f"beside gates that draw at random nothing can be compared: got gates {config.gates}")
    if config.num_labels < 2 or config.problem_type in ("multi_label_classification", "regression"):
        raise ValueError(
            "what skipping costs is a divergence of class probabilities: got "
            f"num_labels {config.num_labels} and problem_type {config.problem_type!r}"
        )
    return gates


def check_precision(model):
    """ValueError for weights of 16 bits."""
    if model.dtype.itemsize < 4:
        raise ValueError(
            f"what skipping costs is less than the noise of 16 bits: fit it in torch.float32, got weights in {model.dtype}"
        )


def check_images(batches):
    """The batches as a list; ValueError for fewer than two images."""
    batches = list(batches)
    if sum(map(len, batches)) < 2:
        raise ValueError("fit_harm needs at least two images: what is learned on one half is tried on the other")
    return batches


@contextmanager
def _held(gates):
    """All of these gates open meanwhile."""
    every = list(gates.values())
    before = biases_of(every)
    try:
        set_biases(every, [torch.full_like(bias, FAR) for bias in before])
        yield
    finally:
        set_biases(every, before)


def _harm(model, gates, pixel_values):
    """(layer, slot) -> what its gate reads (B, D), and log(divergence / cost saved) without each of its units (B, E)."""
    reads = {}

    def read(place):
        def hook(module, args):
            reads[place] = args[0].float()

        return hook

    hooks = [gate.score.register_forward_pre_hook(read(place)) for place, gate in gates.items()]
    try:
        whole = model(pixel_values, gating="threshold")
    finally:
        for hook in hooks:
            hook.remove()
    wanted, found = whole.logits.float().log_softmax(-1), {}
    for place, gate in gates.items():
        columns = []
        for unit in range(len(gate.score.bias)):
            gate.score.bias.data[unit] = -FAR
            without = model(pixel_values, gating="threshold")
            gate.score.bias.data[unit] = FAR
            got = without.logits.float().log_softmax(-1)
            nats = torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="none").sum(-1)
            saved = _saving(model, whole, place, unit)
            columns.append(nats.clamp(min=LEAST).log() - saved.clamp(min=LEAST).log())
        found[place] = reads[place], torch.stack(columns, 1)
    return found


def _saving(model, whole, place, unit):
    """What each image saves (B,), relative to the dense model, without a unit of a layer and all else as it is decided.

    Later gates of tokens may decide otherwise without it: that is no saving of the unit.
    """
    layer, slot = place
    decision, gate = whole.decisions[layer], model.gates[layer][slot]
    keep = torch.ones(len(whole.cost), len(gate.score.bias), device=whole.cost.device)
    keep[:, unit] = 0
    off = decision._replace(**{slot: getattr(decision, slot).float() * gate.settle(keep)})
    given = len(keep), model.tokens_run, keep.device, [model.gates[layer]], layer + 1 < len(model.gates)
    spent = [layer_costs(model.config, [one], *given)[0] for one in (decision, off)]
    return (spent[0] - spent[1]) / dense_macs(model.config, model.num_tokens, model.config.num_labels)


def _set_scores(gates, halves, strength, per_image):
    """Fit each gate with the ridge that explains the other half best; returns the shares that are explained there."""
    explained, fits = {}, {}
    for place in gates:
        parts = [half[place] for half in halves]
        tried = {}
        for ridge in RIDGES:
            shares = [b.explained(a.solve(ridge)) for a, b in (parts, parts[::-1])]
            tried[ridge] = sum(shares) / 2
        ridge = max(tried, key=tried.get)
        both = parts[0] + parts[1]
        weight = both.solve(ridge) if per_image and tried[ridge] > 0 else torch.zeros_like(both.xy)
        explained[place] = max(0.0, tried[ridge]) if per_image else 0.0
        fits[place] = weight, both.constant(weight), both.y / both.count
    middle = torch.cat([mean for _, _, mean in fits.values()]).mean()
    with torch.no_grad():
        for place, gate in gates.items():
            weight, constant, _ = fits[place]
            gate.score.weight.copy_(strength * weight.T)
            gate.score.bias.copy_(strength * (constant - middle))
    return explained
