"""Objectives: what teaches gates, one per file."""

from .base import Objective, Step
from .options import choice, option, share
from .policy_gradient import COST_WEIGHTS, REWARDS, depth_weights, outcome, terminal_reward
from .shelf import OBJECTIVES, build_objective, register_objective


__all__ = [
    "COST_WEIGHTS",
    "OBJECTIVES",
    "REWARDS",
    "Objective",
    "Step",
    "build_objective",
    "choice",
    "depth_weights",
    "option",
    "outcome",
    "register_objective",
    "share",
    "terminal_reward",
]
