"""PyTorch at its fastest on one device: merges in a number that is known ahead, so that torch compiles the whole model.

A packed model asks after every gate how many tokens are left, and neither a compiler nor CUDA graphs see past that question. Where
all sizes are known there is no question: weights become constants of the program (CPU), bookkeeping is fused with the
products, and images of a batch need no padding.

Letters: B images, C classes.
"""

import torch

from ..measure.compiled import compiled
from ..model.cascade import in_looks, view
from ..model.configuration_dynvit import pair
from ..model.outputs import DynViTClassifierOutput
from .checks import check_model
from .export import single_look
from .fixed import check_fixable, fix_merges
from .graphs import given_size
from .stream import Stream


class CompiledDynViT:
    """A `DynViTForImageClassification` for inference with fixed merges: each image merges as much as others have on average.

    Called like the model it was made of, it gives logits, cost, and of a cascade the looks taken. It compiles at the first call with
    a number of images, for a minute or so; weights and thresholds are those of the time it was made.

    Args:
        model: as `check_fixable` lets pass; it is copied and stays as it is.
        calibration: pixel_values (images, channels, height, width), as images come, of which the average is.
        dtype: of the products; None: the model's. Costs and what is learned about merges come from float32.
    """

    def __init__(self, model, calibration, dtype=None):
        check_model(model)
        check_fixable(model)
        if not len(calibration):
            raise ValueError("fixed merges need calibration images, got 0")
        parameter = next(model.parameters())
        device, self.dtype = parameter.device, dtype or parameter.dtype
        self.config, self.layout = model.config, "packed"
        shape = (model.config.num_channels, *pair(model.config.image_size))
        looks = [single_look(model, look) for look in range(len(model.config.cascade or [0]))]
        self._calls, costs = [], []
        with torch.no_grad():
            for look in looks:
                fix_merges(look, calibration.float().cpu())
                stream = Stream(look, many=True, given=given_size(look, shape), joint=True).eval()
                costs.append(stream(torch.zeros(1, *shape))[1])
                self._calls.append(compiled(stream.to(device=device, dtype=self.dtype)))
        self.costs = torch.cat(costs).to(device)  # (looks,)

    @torch.no_grad()
    def __call__(self, pixel_values, budget=None, look=None, return_dict=True):
        """A `DynViTClassifierOutput` of images (B, channels, height, width).

        Args:
            budget: of a cascade, mean cost to aim at, a number or one for each image; None: that of the model.
            look: of a cascade, the only one to take.
        """
        if self.config.cascade is not None and look is None:
            logits, cost, looks = in_looks(self, pixel_values, budget)
            return DynViTClassifierOutput(logits=logits, cost=cost, looks=looks)
        if self.config.cascade is None and budget is not None:
            raise ValueError(f"fixed merges are for one budget, got another: {budget!r}")
        view(self.config, len(pixel_values), look, budget)  # what there is not is refused
        call, pixel_values = self._calls[look or 0], pixel_values.to(self.dtype)
        # How many images need a later look is not known ahead: each alone, as another number would be compiled anew.
        parts = pixel_values.split(1) if look else [pixel_values]
        logits = torch.cat([call(part).logits for part in parts])
        return DynViTClassifierOutput(logits=logits, cost=self.costs[look or 0].repeat(len(logits)))
