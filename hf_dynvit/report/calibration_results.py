"""The kind of results that recipes/calibrate.py leaves beside a model, for its card: no table shows it."""

from dataclasses import dataclass
from typing import ClassVar

from .schema import Results


@dataclass(kw_only=True)
class Calibration(Results):
    """calibration.json of recipes/calibrate.py.

    Attributes:
        model: what was calibrated. images, split, crop_pct: how many, of which split, and what was seen of each.
        calibrated: whether anything could be brought to a budget; a rule has a cost of its own.
        cost: mean on the images, at `budget`. budgets: others that the model has thresholds for. milliseconds: what was asked for.
        before, terms: of the model, as `cards.before`.
    """

    kind: ClassVar[str] = "calibration"
    model: str
    images: int
    split: str
    crop_pct: float | None
    calibrated: bool
    cost: float
    budget: float
    budgets: list
    milliseconds: float | None
    before: dict
    terms: dict


def calibration_rows(found):
    """Name -> value for the card: what was done before, and this calibration in place of an earlier one."""
    how = "calibrated on" if found.calibrated else "cost measured on"
    return found.before | {
        "calibration": f"{how} {found.images:,} images ({found.split}), whose labels were not read",
        "mean cost on them": f"{found.cost:.3f}" + f", at a budget of {found.budget:.3g}" * found.calibrated,
        "further budgets": ", ".join(f"{one}" for one in found.budgets if one != found.budget) or None,
        "milliseconds asked for": found.milliseconds,
        "seed of the calibration": found.seed,
    }
