"""The kind of results that recipes/compare_agents.py writes: trainings with several agents, side by side."""

from dataclasses import dataclass, field
from typing import ClassVar

from .results import AgentRun
from .schema import Results


@dataclass(kw_only=True)
class Run:
    """One training of a comparison, with one variant and one seed.

    Attributes:
        chosen: accuracy and cost on the patches that the agent chose. kept_share: of the patches, in training.
        step_mib: working memory of the "first" and "last" step. curve: dicts of step, seconds, accuracy, loss.
    """

    variant: str
    seed: int
    commit: str | None
    command: str
    accuracy: float
    chosen: dict | None
    train_seconds: float
    agent: AgentRun | None
    kept_share: float
    train_cost: float | None
    step_mib: dict
    curve: list


@dataclass(kw_only=True)
class Comparison(Results):
    """compare.json of recipes/compare_agents.py; the fields that may be None are known once the data is loaded."""

    kind: ClassVar[str] = "comparison of agents"
    dataset: str
    steps: int
    batch_size: int
    evaluations: int
    settings: dict
    split: str | None = None
    split_files: list | None = None
    images: int | None = None
    crop_pct: float | None = None
    curves_on: str | None = None
    curve_images: int | None = None
    runs: list[Run] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
