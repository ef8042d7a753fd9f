"""Patch agents for the tests: alone, and in the trainer of a tiny model."""

import torch
from models import images
from trainers import build_trainer

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.agents.base import Moment
from hf_dynvit.agents.shelf import AGENTS


LEARNING = ("agentvit", "agentvit-dqn", "agentvit-plus")
FAST = {"learn_every": 2, "sample": 2, "capacity": 3, "epsilon_decay": 4}


def build(vit, name, desired=8, seed=0, **options):
    """An agent alone, without a trainer."""
    kind, defaults = AGENTS[name]
    model = DynViTForImageClassification.from_vit(vit)
    return kind(model, desired, kind.Options(**{**defaults, **options}), torch.device("cpu"), seed)


def agent_trainer(tiny_vit, folder, agent, desired=8, **options):
    if agent in LEARNING and "agent_options" not in options:
        options["agent_options"] = FAST if agent != "agentvit-plus" else {"learn_every": 2}
    return build_trainer(tiny_vit, folder, gates=None, budget=1.0, agent=agent, n_patch_desired=desired, **options)


def flat(value, name=""):
    """Nested dicts and lists of tensors -> {path: tensor}; nothing else is in there."""
    if torch.is_tensor(value):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, entry in pairs for path, leaf in flat(entry, f"{name}/{key}").items()}


class Informative(torch.nn.Module):
    """A made-up classifier whose label's probability is the share of patches 1, 6 and 11 that it is given."""

    def __init__(self, model):
        super().__init__()
        self.vit, self.config = model.vit, model.config

    def forward(self, pixel_values, patches, merge_patches=False):
        patches = patches.expand(len(pixel_values), -1)
        share = torch.isin(patches, torch.tensor([1, 6, 11])).float().sum(1) / 3
        p = 0.1 + 0.8 * share
        return type("Outputs", (), {"logits": torch.stack((p, 1 - p), 1).log(), "loss": -p.log().mean()})


def toy(vit, name, **options):
    """How high the agent ranks the informative patches after learning: mean place of the three, 1 at best.

    The images are faint, so that a patch is known by its position; what is learned is all that ranks.
    """
    options = {"novelty": 0.0} | options if name == "agentvit-plus" else options
    agent = build(vit, name, desired=6, **options)
    agent.model = classifier = Informative(agent.model)
    labels = torch.zeros(32, dtype=torch.int64)
    for batch in range(250):
        pixel_values, moment = 0.1 * images(32), Moment(batch, batch + 1, 1)
        patches = agent.choose(pixel_values, moment)
        agent.observe(pixel_values, labels, classifier(pixel_values, patches), moment)
        agent.after_step()
    pixel_values = 0.1 * images(64)
    if name == "agentvit-plus":
        scores = agent.logits(agent.features(pixel_values)).mean(0)
    else:
        scores = agent._q(agent.network, agent.state(pixel_values)).mean(0)
        scores = scores[:, 1] - scores[:, 0] if name == "agentvit-dqn" else scores
    places = scores.argsort(descending=True).argsort()
    return places[[1, 6, 11]].float().mean().item()
