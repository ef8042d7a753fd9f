"""Importance in closed form: the scores of token gates learn which tokens the prediction depends on, in one pass.

What is learned is the saliency of the model's own prediction (Simonyan et al., 2014): the gradient of the log-probability of
what is predicted with respect to each token that enters a layer. Its norm needs a forward and a backward pass; the gate
predicts its logarithm from the normed token by ridge regression, at the price of the one product that its score costs
anyway. No labels are used, and the backbone stays as it is.

Letters: B images, N tokens, D channels.
"""

import torch
from tqdm.auto import tqdm

from ..measure.precision import in_own_precision
from ..objectives.gate_kinds import token_gates
from ..objectives.saliency import log_saliency
from ..objectives.task_loss import check_classes
from .least_squares import Moments


def fit_importance(model, batches, strength=1.0, ridge=1e-3):
    """Set the scores of all token gates to the importance of tokens, relative to the mean of their image.

    Thresholds are to be calibrated afterwards (`calibrate`): the mean score of each layer stays what it was, so that
    scores change which tokens stay, not yet how many.

    Args:
        model: a model with gates of tokens that read the layer's entrance (`patch`, `merge`); it is run with all open. A
            table of budgets is dropped (`model.drop_budgets`). Of a cascade all looks count.
        batches: `pixel_values` (B, channels, height, width) of a few hundred images, any iterable.
        strength: what one unit of log-saliency (a factor e in gradient norm) adds to the logit.
        ridge: penalty on squared weights, relative to the mean variance of a feature.

    Returns:
        Layer -> share of the variance of log-saliency within images that the score explains on these images.

    Raises:
        ValueError: no such gates, a regression, no images, or a strength or ridge that is negative or not finite.
    """
    gates = token_gates(model)
    if not gates:
        raise ValueError("fit_importance needs learned gates of tokens (patch, merge), and the model has none")
    check_classes(model.config)
    for name, value in (("strength", strength), ("ridge", ridge)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    sums = {layer: Moments() for layer in gates}
    looks = [None] if model.config.cascade is None else range(len(model.config.cascade))
    model.drop_budgets()
    was_training = model.training
    model.eval()
    try:
        for pixel_values in tqdm(batches, desc="learning importance", leave=False):
            for look in looks:
                for layer, (tokens, target) in _saliency(model, pixel_values, list(gates), look).items():
                    sums[layer].add(tokens, target)
    finally:
        model.train(was_training)
    if not all(found.count for found in sums.values()):
        raise ValueError("fit_importance needs images, got none")
    explained = {}
    for layer, gate in gates.items():
        weight = sums[layer].solve(ridge)  # (D, 1)
        explained[layer] = sums[layer].explained(weight)
        with torch.no_grad():
            before = gate.score.weight.T.double().to(weight.device)
            # The mean score of the layer stays what it was: how much is kept is for the calibration to say.
            gate.score.bias += strength * sums[layer].constant(weight) - sums[layer].constant(before)
            gate.score.weight.copy_(strength * weight.T)
    return explained


def _saliency(model, pixel_values, layers, look=None):
    """Layer -> normed tokens (T, D) and log-saliency (T, 1), centred within each image, of all unprotected tokens."""
    host = model.host
    with in_own_precision(model):  # small gradients vanish in 16 bits
        salient = log_saliency(model, pixel_values, layers, gating="open", look=look)
    free = torch.ones(salient[0][0].shape[1], dtype=torch.bool, device=pixel_values.device)
    free[host.index()] = False
    found = {}
    with torch.no_grad():
        for layer, (tokens, log) in zip(layers, salient, strict=True):
            log = log[:, free]  # (B, N - P)
            normed = host.parts(host.layers(model.base_model)[layer]).attention_norm(tokens)[:, free]
            found[layer] = normed.flatten(0, 1), (log - log.mean(1, keepdim=True)).reshape(-1, 1)
    return found
