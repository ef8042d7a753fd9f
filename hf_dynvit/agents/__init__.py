"""Patch agents: they choose the patches that a training forward runs on."""

from ..objectives.options import choice, share
from .base import Agent, Moment
from .callback import AGENT_EVALUATIONS, PatchAgent
from .shelf import AGENTS, build_agent, parse_variant, register_agent


__all__ = [
    "AGENTS",
    "AGENT_EVALUATIONS",
    "Agent",
    "Moment",
    "PatchAgent",
    "build_agent",
    "choice",
    "parse_variant",
    "register_agent",
    "share",
]
