"""The kind of results that recipes/leaderboard.py writes: methods at budgets, all of one checkpoint on the same images."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..measure.speed import Speed
from .results import Scores
from .schema import Results


@dataclass(kw_only=True)
class Cell(Scores):
    """A method at one budget, untrained or tuned with one seed, as recipes/leaderboard.py measures it.

    Attributes:
        commit, command: it was measured at and by, which differ where a board was gone on with; None: those of the board.
    """

    method: str
    budget: float
    tuned: bool
    seed: int
    resolution: int | list | None
    gates: list | None
    cascade: list | None = None
    throughput: list[Speed] = field(default_factory=list)
    commit: str | None = None
    command: str | None = None


@dataclass(kw_only=True)
class SmallerDense(Scores):
    """A smaller plain ViT on the same images; its cost is relative to itself, its speed that of its dense ways."""

    model: str
    throughput: list[Speed] = field(default_factory=list)


@dataclass(kw_only=True)
class Leaderboard(Results):
    """leaderboard.json of recipes/leaderboard.py; `dense` is the checkpoint as given, `smaller` the next smaller one."""

    kind: ClassVar[str] = "leaderboard"
    model: str
    dataset: str
    split: str
    split_files: list
    images: int
    dense: Scores
    settings: dict
    cells: list[Cell] = field(default_factory=list)
    smaller: SmallerDense | None = None

    def speeds(self):
        timed = [*self.cells, *([self.smaller] if self.smaller else [])]
        return [speed for one in timed for speed in one.throughput]
