"""PyTorch at its fastest on a CPU: merges in a number that is known ahead, so that torch compiles the whole model.

A packed model asks after every gate how many tokens are left, and no compiler sees past that question. Where all sizes are
known there is no question: weights become constants of the program, bookkeeping is fused with the products, and images of a
batch need no padding.

Letters: B images, C classes.
"""

import copy

import torch

from ..measure.compiled import compiled
from ..model.cascade import in_looks, view
from ..model.configuration_dynvit import pair
from ..model.gate_merge import MergeGate
from ..model.outputs import DynViTClassifierOutput
from ..training.fixed import fix_merges
from .checks import check_model
from .export import single_look
from .graphs import given_size
from .parting import keeps_as_many
from .stream import Stream


IN_PARTS = (4, 1)  # images of a later look that run together, the most first


class CompiledDynViT:
    """A `DynViTForImageClassification` for inference whose layers run as many tokens of each image as of any other.

    Merge gates merge a fixed number of pairs, the mean over calibration images, and in each image those of the least logit. Gates
    that keep as many tokens of every image anyway stay what they are. It gives logits, cost, and of a cascade the looks taken.
    It compiles at the first call with a number of images, for a minute or so, and keeps a copy of the weights for each number. Those
    that a later look of a cascade is for run in parts of 4 and of 1.
    Weights, thresholds and budget are those of the time it was made. A cascade whose merges are fixed here keeps the confidences
    that were measured with each image's own; `calibrate.py --fixed true` fixes them first and measures anew.

    Args:
        model: on CPU, as `check_compilable` lets pass; it is copied and stays as it is.
        calibration: pixel_values (images, channels, height, width), as images come, over which merges are averaged. None is
            needed where their number is fixed already, or there are none.
        dtype: of the products; None: the model's. Costs, and how many pairs merge, come from float32.

    Raises:
        ValueError: what `check_compilable` refuses, or no images for merges.
    """

    def __init__(self, model, calibration=None, dtype=None):
        merges = check_compilable(model)
        if merges and (calibration is None or not len(calibration)):
            raise ValueError("fixed merges need calibration images, whose mean they are, got none")
        self.dtype = dtype or next(model.parameters()).dtype
        self.config, self.layout = copy.deepcopy(model.config), "packed"
        self.shape = (model.config.num_channels, *pair(model.config.image_size))
        looks = [single_look(model, look) for look in range(len(model.config.cascade or [0]))]
        self._calls, costs = [], []
        with torch.no_grad():
            for look in looks:
                if merges:
                    fix_merges(look, torch.as_tensor(calibration).float())
                stream = Stream(look, many=True, given=given_size(look, self.shape), joint=True).eval()
                costs.append(stream(torch.zeros(1, *self.shape))[1])
                self._calls.append(compiled(stream.to(self.dtype)))
        self.costs = torch.cat(costs)  # (looks,)

    @torch.no_grad()
    def __call__(self, pixel_values, budget=None, look=None, return_dict=True):
        """A `DynViTClassifierOutput` of images (B, channels, height, width), at least one.

        Args:
            budget: of a cascade, mean cost to aim at, a number or one for each image; None: that of the model.
            look: of a cascade, the only one to take. return_dict: True; there is no other output.

        Raises:
            ValueError: images of another size than the model was configured for, a budget or look that there is not.
        """
        if tuple(pixel_values.shape[1:]) != self.shape or not len(pixel_values) or not return_dict:
            raise ValueError(
                f"pixel_values must be (images, {', '.join(map(str, self.shape))}), and return_dict True, got "
                f"{tuple(pixel_values.shape)}, {return_dict}"
            )
        if self.config.cascade is not None and look is None:
            logits, cost, looks = in_looks(self, pixel_values, budget)
            return DynViTClassifierOutput(logits=logits, cost=cost, looks=looks)
        if self.config.cascade is None and budget is not None:
            raise ValueError(
                f"this model was compiled for one budget, {self.config.budget}: leave out budget={budget!r}"
            )
        view(self.config, len(pixel_values), look, budget)  # what there is not is refused
        call, pixel_values = self._calls[look or 0], pixel_values.to(self.dtype)
        # How many images need a later look is not known ahead, and each number would be compiled anew: in parts of a few sizes.
        parts = pixel_values.split(_parts(len(pixel_values))) if look else [pixel_values]
        logits = torch.cat([call(part).logits for part in parts])
        return DynViTClassifierOutput(logits=logits, cost=self.costs[look or 0].repeat(len(logits)))


def program_of(model):
    """The `CompiledDynViT` of a model whose predictions it has, one that keeps as many tokens of every image; None of others.

    Args:
        model: with gates, looks, a size or a last layer of its own; the plain ViT is compiled already, where dense models are timed.
    """
    config = model.config
    if not (config.gates or config.resolution or config.cascade or config.last_layer):
        return None
    try:
        fixes = check_compilable(model)
    except (TypeError, ValueError):
        return None
    return None if fixes else CompiledDynViT(model)


def check_compilable(model):
    """Whether a model has merges to fix; what has no sizes that can be known ahead is refused.

    Raises:
        TypeError, ValueError: as `check_model`, a model that is not on CPU, or a gate that leaves each image its own number of tokens,
            heads or sub-layers.
    """
    check_model(model)
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"models are compiled on CPU, this one is on {device}")
    gates = [gate for gates in model.gates for gate in gates.values()]
    own = {type(gate).__name__ for gate in gates if not (_by_threshold(gate) or _keeps_a_number(gate))}
    if own:
        raise ValueError(
            f"gates that leave each image its own number of tokens, heads or sub-layers cannot be compiled, got {sorted(own)}. Use the "
            "packed model, model.prepack(kernels=True), or gates that merge"
        )
    return any(_by_threshold(gate) for gate in gates)


def _parts(images):
    """Sizes that add up to so many images, each of `IN_PARTS`."""
    sizes = []
    for most in IN_PARTS:
        sizes += [most] * ((images - sum(sizes)) // most)
    return sizes


def _by_threshold(gate):
    return type(gate) is MergeGate and gate.merged is None


def _keeps_a_number(gate):
    """Whether a gate keeps as many tokens of every image, in all number formats: a threshold over ranks may round to another one."""
    return gate.drop and keeps_as_many(gate) and not getattr(gate, "by_rank", False)
