"""The shift of all gates' logits at which a mean over images, of cost or of time, is nearest to what it shall be."""

import torch
from tqdm.auto import tqdm

from ..model.gate import Exploration


WIDEST = 16.0  # no shift of thresholds goes further: gates that are still open or closed there decide alike for all
STEPS = 12  # that are tried
FIRST_STEP = 1.0  # from where the gates stand; most calibrations move thresholds by less, after a training that followed the budget


class Shifts:
    """What shifts give on images, each tried once.

    Args:
        model: a model with learned gates, in evaluation mode; no weight of it changes.
        batches: list of `pixel_values` (B, channels, height, width).
        measure: outputs of the model -> (B,), what rises with the shift; None: their cost.
        look: which look of a cascade; None: of a model without one.
    """

    def __init__(self, model, batches, measure=None, look=None):
        self.model, self.batches, self.measure = model, batches, measure or (lambda outputs: outputs.cost)
        self.look, self.tried = look, {}

    @torch.no_grad()
    def mean(self, shift):
        """The mean over the images where the logits of all learned gates are shifted by a number, as they are: None."""
        found = []
        for pixel_values in self.batches:
            how = {"gating": "threshold", "exploration": Exploration(shift=shift), "look": self.look}
            outputs = self.model(pixel_values, **how)
            found.append(self.measure(outputs).double().cpu())
        return torch.cat(found).mean().item()

    def nearest(self, target, tolerance):
        """(shift, mean) nearest to a target, within `tolerance` if the gates can: by steps from 0 that double until the target
        lies between two, then by bisection."""
        reach = FIRST_STEP
        for turn in tqdm(range(STEPS), desc="calibrating", leave=False):
            shift = self._next(target, turn % 2 == 0, reach) if self.tried else 0.0
            if self.tried and not min(self.tried) < shift < max(self.tried):
                reach *= 2
            if shift not in self.tried:
                self.tried[shift] = self.mean(shift)
            best = min(self.tried, key=lambda one: abs(self.tried[one] - target))
            if abs(self.tried[best] - target) <= tolerance:
                break
        return best, self.tried[best]

    def _next(self, target, bisect, reach):
        """A shift between those whose means lie around the target: halfway, or in between where a line would meet it; `reach` further
        out where all lie on one side."""
        high = min((shift for shift, mean in self.tried.items() if mean > target), default=None)
        below = (shift for shift, mean in self.tried.items() if mean <= target and (high is None or shift < high))
        low = max(below, default=None)
        if low is None:
            return max(-WIDEST, min(self.tried) - reach)
        if high is None:
            return min(WIDEST, max(self.tried) + reach)
        share = 0.5
        if not bisect:
            share = (target - self.tried[low]) / (self.tried[high] - self.tried[low])
        return low + (high - low) * min(0.9, max(0.1, share))
