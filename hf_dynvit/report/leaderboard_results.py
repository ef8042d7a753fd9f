"""The kind of results that recipes/leaderboard.py writes: methods at budgets, all of one checkpoint on the same images."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..measure.looks import Looks
from ..measure.speed import Speed
from .results import Scores
from .schema import Results


DENSE = "dense"  # the method that is the plain ViT


@dataclass(kw_only=True)
class Cell(Scores):
    """A method at one budget, untrained or tuned with one seed, as recipes/leaderboard.py measures it.

    Attributes:
        looks: of a cascade, each look and other budgets, of the model as it was kept. looked_commit, looked_command: those of it,
            where they are others.
        trained_commit, trained_command: of a model that was trained for an earlier board, those of its training.
        commit, command: it was measured at and by, which differ where a board was gone on with; None: those of the board.
        timed_commit, timed_command: likewise, of `throughput`. timed_on: device, threads and number format of it.
    """

    method: str
    budget: float
    tuned: bool
    seed: int
    resolution: int | list | None
    gates: list | None
    cascade: list | None = None
    looks: Looks | None = None
    looked_commit: str | None = None
    looked_command: str | None = None
    throughput: list[Speed] = field(default_factory=list)
    trained_commit: str | None = None
    trained_command: str | None = None
    commit: str | None = None
    command: str | None = None
    timed_commit: str | None = None
    timed_command: str | None = None
    timed_on: str | None = None

    def commits(self):
        return [one for one in (self.trained_commit, self.commit, self.looked_commit, self.timed_commit) if one]

    def commands(self):
        commands = (self.trained_command, self.command, self.looked_command, self.timed_command)
        return [one for one in commands if one]


@dataclass(kw_only=True)
class SmallerDense(Scores):
    """A smaller plain ViT on the same images; its cost is relative to itself, its speed that of its dense ways."""

    model: str
    throughput: list[Speed] = field(default_factory=list)


@dataclass(kw_only=True)
class Leaderboard(Results):
    """leaderboard.json of recipes/leaderboard.py; `dense` is the checkpoint as given, `smaller` the next smaller one; `crop_pct`: as in
    `ModelResults`."""

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
    crop_pct: float | None = None

    def speeds(self):
        timed = [*self.cells, *([self.smaller] if self.smaller else [])]
        return [speed for one in timed for speed in one.throughput]

    def by_cell(self):
        """(method, tuned) -> budget -> cells that differ by seed alone."""
        found = {}
        for cell in sorted(self.cells, key=lambda cell: (cell.tuned, -cell.budget)):
            found.setdefault((cell.method, cell.tuned), {}).setdefault(cell.budget, []).append(cell)
        return found
