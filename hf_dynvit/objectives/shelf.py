"""The shelf of objectives by name, and what builds one from the options of a training."""

from dataclasses import fields

from .auxiliary import AuxiliaryObjective
from .base import Objective
from .cost import CostObjective
from .options import parse_options
from .rate import RateObjective
from .reinforce import ReinforceObjective
from .usage import UsageObjective


OBJECTIVES = {
    "cost": CostObjective,
    "usage": UsageObjective,
    "rate": RateObjective,
    "reinforce": ReinforceObjective,
    "auxiliary": AuxiliaryObjective,
}


def register_objective(name, kind):
    """Put an objective on the shelf, so that `objective=NAME` trains with it; no file of this package changes.

    Raises:
        ValueError: a name that is taken. TypeError: no objective.
    """
    if name in OBJECTIVES:
        raise ValueError(f"there is an objective {name!r} already: register yours by another name")
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise TypeError(f"objective {name!r} must be a subclass of hf_dynvit.objectives.Objective, got {kind!r}")
    OBJECTIVES[name] = kind


def build_objective(name, given):
    """The objective of that name, with `given` of its options.

    Raises:
        ValueError: an objective or an option that there is not, or a value that it cannot have.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {tuple(OBJECTIVES)}, got {name!r}")
    kind = OBJECTIVES[name]
    return kind(parse_options(f"objective {name!r}", kind.Options, given))


def flat_options():
    """Name -> dataclass field of the options of all objectives; where two have one name, of the first."""
    every = [option for kind in reversed(OBJECTIVES.values()) for option in fields(kind.Options)]
    return {option.name: option for option in every}


def own_options(name, flat):
    """Of options that are given flat, those of objective `name`; those of others do not count, but must be right.

    So a recipe's file may say how one objective teaches, and the command line take another.
    """
    own = {option.name for option in fields(type(build_objective(name, {})).Options)}
    for other, kind in OBJECTIVES.items():
        known = {option.name for option in fields(kind.Options)} - (own if other != name else set())
        build_objective(other, {key: value for key, value in flat.items() if key in known})
    return {key: value for key, value in flat.items() if key in own}
