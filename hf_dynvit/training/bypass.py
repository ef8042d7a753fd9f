"""`fit_bypass`: what skipped blocks and sub-layers add instead, in closed form on a few hundred unlabelled images.

Letters: B images, N tokens, D channels, T tokens of all images.
"""

import math
from itertools import pairwise

import torch
from tqdm.auto import tqdm

from ..model.bypass import bypass_of
from ..model.decisions import TokenState
from ..model.encoder import layer_notes
from ..model.gate import NO_EXPLORATION
from ..model.layer import Seen, run_layer
from ..model.resolution import resized
from .least_squares import Moments


RIDGE = 0.01
BATCH = 32  # of images that are given in one tensor


def fit_bypass(model, images, ridge=RIDGE, skipping=False):
    """Fit the bypasses of all gates to what their blocks or sub-layers add, one after another along the stream.

    Least squares with a ridge on the map, not on its bias, over the tokens of all images, so that a bypass is good for
    whichever of them skip; "low_rank" is the best map of that rank (reduced-rank regression: the ridge solution projected
    on the main directions of what it predicts). As ReplaceMe (Shopkhoev et al., 2025, arXiv 2505.02819) does for blocks
    of language models that are pruned for all inputs.

    Args:
        model: a model whose gates have bypasses; nothing but these changes. It needs no training first. A table of budgets
            is dropped (`model.drop_budgets`): other bypasses are followed by other decisions.
        images: `pixel_values` (B, channels, height, width), or batches of them: a list, or a loader of dicts with them.
        ridge: strength of the ridge, relative to the mean variance of the channels.
        skipping: along a stream in which the layers before have skipped as their gates and `layer_mask` say, with the
            bypasses that were just fitted; else along that of the dense model.

    Returns:
        (layer, "block", "attention" or "mlp") -> the share of the variance of what is added that the bypass explains on
        these images.

    Raises:
        ValueError: no bypass to fit, no images, or a ridge that is not positive and finite.
    """
    fitted = check_bypass(model)
    if not (isinstance(ridge, (int, float)) and math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge must be positive and finite, got {ridge!r}")
    model.drop_budgets()
    batches = images.split(BATCH) if torch.is_tensor(images) else images
    was_training = model.training
    model.eval()
    try:
        shares = _fitted(model, batches, fitted[-1] + 1, ridge, skipping)
    finally:
        model.train(was_training)
    return shares


@torch.no_grad()
def _fitted(model, batches, layers, ridge, skipping):
    """The shares that `fit_bypass` returns, of a model in evaluation mode."""
    shares = {}
    streams = [_Stream(model, batch if torch.is_tensor(batch) else batch["pixel_values"]) for batch in batches]
    if not sum(len(stream.x) for stream in streams):
        raise ValueError("a bypass is fitted to images, got none")
    for layer in tqdm(range(layers), desc="fitting bypasses", leave=False):
        bypasses = bypass_of(model.gates[layer])
        moments = [Moments() for _ in bypasses]
        for stream in streams:
            for found, (tokens, added) in zip(moments, stream.branches(layer, len(bypasses)), strict=True):
                found.add(tokens, added)
        names = ("block",) if len(bypasses) == 1 else ("attention", "mlp")
        for name, bypass, found in zip(names, bypasses, moments, strict=False):
            shares[layer, name] = _set(bypass, found, ridge)
        for stream in streams:
            stream.advance(layer, skipping)
    return shares


def check_bypass(model):
    """The layers of a model whose gates have a bypass.

    Raises:
        ValueError: none has, or it is a cascade, whose looks each would want one of their own.
    """
    if model.config.cascade is not None:
        raise ValueError(f"a bypass is fitted to one look at an image, this is a cascade of {model.config.cascade}")
    layers = [layer for layer, gates in enumerate(model.gates) if bypass_of(gates)]
    if not layers:
        raise ValueError(
            'there is no bypass to fit: give a gate of blocks or sub-layers bypass="linear" (or "mean", "diagonal", '
            f'"low_rank"), got gates {model.config.gates}'
        )
    return layers


class _Stream:
    """The tokens of a batch of images on their way through the layers."""

    def __init__(self, model, pixel_values):
        self.model, self.host = model, model.host
        self.layers = self.host.layers(model.base_model)
        resolution, pixel_values = model.config.resolution, pixel_values.to(model.device)
        pixel_values = pixel_values if resolution is None else resized(pixel_values, resolution)
        self.x, side = self.host.embed(model.base_model, pixel_values, resolution is not None)
        self.state, self.entry, self.whole = TokenState(side=side), None, None

    def branches(self, layer, count):
        """For the block (count 1), or for attention and MLP (2): tokens (T, D) that enter it, and what it adds to them."""
        if not count:
            return
        self.whole = self._run(layer, (True, True))[0]
        middle = [self._run(layer, (True, False))[0]] if count == 2 else []
        keep = slice(None) if self.state.alive is None else self.state.alive > 0.5
        for before, after in pairwise([self.x, *middle, self.whole]):
            yield before[keep].flatten(0, -2), (after - before)[keep].flatten(0, -2)

    def advance(self, layer, skipping):
        """Through the layer, whole, or as its gates and the mask say."""
        if not skipping:
            self.x, self.whole = self._run(layer, (True, True))[0] if self.whole is None else self.whole, None
            return
        gates, mask = self.model.gates[layer], self.model.config.layer_mask
        allowed = (True, True) if mask is None else tuple(mask[layer])
        upfront = [gate for gate in gates.values() if gate.upfront]
        if self.entry is None and upfront and any(allowed):
            self.entry = upfront[0].pool(self.x).unsqueeze(1)
        notes = layer_notes(self.model)[layer]
        self.x, _, self.state, _ = self._run(layer, allowed, gates, "threshold", notes)

    def _run(self, layer, allowed, gates=None, gating="open", notes=()):
        seen = Seen(
            gating=gating,
            packed=True,
            replay=None,
            exploration=NO_EXPLORATION,
            state=self.state,
            allowed=allowed,
            wants_weights=False,
            entry=self.entry,
            ahead=None,
            compacts=False,
            notes=notes,
        )
        return run_layer(self.host, self.layers[layer], gates or {}, self.x, seen)


def _set(bypass, found, ridge):
    """Set the weights of a `Bypass` from `Moments`; returns the share of the variance of y that it explains."""
    regular, crossed, _ = found.centred(ridge)
    weight = torch.zeros_like(crossed)  # (in, out)
    if bypass.kind == "diagonal":
        weight = (crossed.diagonal() / regular.diagonal()).diag()
        bypass.scale.copy_(weight.diagonal())
    elif bypass.kind != "mean":
        weight = found.solve(ridge)
    if bypass.kind == "linear":
        bypass.up.weight.copy_(weight.T)
    elif bypass.kind == "low_rank":
        main = torch.linalg.eigh(weight.T @ regular @ weight).eigenvectors[:, -bypass.rank :]
        bypass.down.weight.copy_((weight @ main).T)
        bypass.up.weight.copy_(main)
        weight = weight @ main @ main.T
    bypass.bias.copy_(found.constant(weight))
    return found.explained(weight)
