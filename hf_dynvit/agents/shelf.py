"""Shelf of patch agents: their names, others that are registered, and how one is built for a training.

An agent is named alone ("random") or with options after a colon ("random:return_fraction=0.5,n_patch_desired=20").
"""

import yaml

from ..objectives.options import parse_options
from .agentvit import AgentViTAgent
from .agentvit_dqn import DQNAgent
from .agentvit_plus import SubsetPolicy
from .base import Agent
from .rules import CenterRule, FixedRule, RandomRule


SHARED_OPTIONS = ("n_patch_desired", "max_steps")  # of a variant that are the training's, not the agent's
# Name -> class, and the options that differ from the class's own.
AGENTS = {
    "agentvit": (AgentViTAgent, {}),
    "agentvit-dqn": (DQNAgent, {}),
    "agentvit-plus": (SubsetPolicy, {}),
    "random": (RandomRule, {}),
    "fixed": (FixedRule, {}),
    "center": (CenterRule, {}),
    "progressive": (RandomRule, {"return_fraction": 1.0}),
}


def register_agent(name, kind, **defaults):
    """Put an agent on the shelf, so that `agent=NAME` trains with it; no file of this package changes.

    Args:
        name: a new name; a class that is defined anew, as in a notebook, takes the place of its old self.
        kind: a subclass of `Agent`. defaults: options that differ from those of its `Options`.

    Raises:
        ValueError: a name that is taken. TypeError: no agent.
    """
    if not (isinstance(kind, type) and issubclass(kind, Agent)):
        raise TypeError(f"agent {name!r} must be a subclass of hf_dynvit.agents.Agent, got {kind!r}")
    known = AGENTS[name][0] if name in AGENTS else kind
    if name == "none" or (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"there is an agent {name!r} already: register yours by another name")
    AGENTS[name] = (kind, defaults)


def parse_variant(variant):
    """`name` or `name:key=value,key=value` -> the training arguments that it stands for; `none`: no agent.

    The keys are the agent's own options, and `SHARED_OPTIONS`, for comparisons at equal time.
    """
    name, _, given = variant.partition(":")
    pairs = [pair.partition("=") for pair in given.split(",") if pair]
    options = {key: yaml.safe_load(value) for key, _, value in pairs}
    shared = {key: options.pop(key) for key in SHARED_OPTIONS if key in options}
    return {"agent": name, "agent_options": options, **shared}


def build_agent(model, args):
    """The agent that `DynViTTrainingArguments` name, for the unwrapped model.

    Raises:
        ValueError: arguments, a model or a number of processes that do not fit the agent.
    """
    name, layers = args.agent, model.config.num_hidden_layers
    kind, defaults = AGENTS[name]
    options = parse_options(f"agent {name!r}", kind.Options, args.agent_options or {}, defaults)
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(f"agent {name!r} learns in one process on one device: its networks are not shared")
    if getattr(model.vit.embeddings, "cls_token", None) is None:
        raise ValueError(f"agent {name!r} needs a model with a [CLS] token, the one that is always kept")
    if layers < kind.layers_needed:
        raise ValueError(
            f"agent {name!r} reads the attention of the first layer, and saves in the layers: on a model "
            f"with {layers} it would cost what it saves; take one with {kind.layers_needed} layers or more"
        )
    if args.make_objective().trains_packed or model.learned_gates():
        raise ValueError(
            f"agent {name!r} removes patches in training alone, while the budget and the cost penalty of gates "
            "are for all patches: train gates without an agent, and an agent without gates"
        )
    if model.config.resolution is not None or model.config.cascade is not None:
        raise ValueError(
            f"agent {name!r} chooses patches of the images as they come, and the model resizes them to "
            f"{model.config.resolution or model.config.cascade}: train without an agent, or without a resolution"
        )
    patches = model.num_tokens - 1
    desired = max(1, patches // 2) if args.n_patch_desired is None else args.n_patch_desired
    if not isinstance(desired, int) or not 1 <= desired <= patches:
        raise ValueError(f"n_patch_desired must be in 1..{patches}, the patches of the model, got {desired!r}")
    return kind(model, desired, options, args.device, args.seed)
