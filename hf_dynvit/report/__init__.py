"""What was found, for people: results and their schema, tables, plots, pictures, model cards."""

from .comparison_results import Comparison, Run
from .deployment_results import Deployment
from .leaderboard_results import Cell, Leaderboard, SmallerDense
from .model_card import write_model_card
from .names import decides
from .pictures import show_decisions
from .plots import plot_usage
from .point_results import Points
from .publish import describe, push
from .results import (
    Benchmark,
    Demo,
    Evaluation,
    Runtime,
    Scores,
    Search,
    Step,
    StepTime,
    Training,
)
from .runtime_results import Runtimes
from .schema import Results, read, write


__all__ = [
    "Benchmark",
    "Cell",
    "Comparison",
    "Demo",
    "Deployment",
    "Evaluation",
    "Leaderboard",
    "Points",
    "Results",
    "Run",
    "Runtime",
    "Runtimes",
    "Scores",
    "Search",
    "SmallerDense",
    "Step",
    "StepTime",
    "Training",
    "decides",
    "describe",
    "plot_usage",
    "push",
    "read",
    "show_decisions",
    "write",
    "write_model_card",
]
