"""Static masks: a search for what a model can do without, and what becomes of the masks that it finds."""

from .export import burn_in, start_from_mask
from .masks import MaskScores, MaskSpace
from .pareto import OBJECTIVES, front, pick, search


__all__ = ["OBJECTIVES", "MaskScores", "MaskSpace", "burn_in", "front", "pick", "search", "start_from_mask"]
