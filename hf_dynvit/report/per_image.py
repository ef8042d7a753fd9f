"""The table of models whose images were measured one by one: how their costs are spread, and what the spread is worth."""

from .names import cost_spread, model_name, reported_on, short
from .tables import MEASURED, of


PER_IMAGE = {  # of an evaluation and its `PerImage`
    "model": lambda results, found: short(results.model),
    "data": lambda results, found: results.dataset,
    "decides": lambda results, found: model_name(results),
    "images": lambda results, found: f"{found.images:,} of {reported_on(results)}",
    "top-1 at cost": lambda results, found: f"{100 * found.accuracy:.2f} at {cost_spread([found])}",
    "top-1 at the same cost for every image": lambda results, found: (
        f"{100 * found.equal_accuracy:.2f} at {found.equal_cost:.3f} ± {found.equal_cost_std:.3f} "
        f"({found.only_shared} images lost, {found.only_equal} gained)"
    ),
    "correlation of cost with the dense loss": lambda results, found: (
        None if found.correlation is None else f"{found.correlation:.2f}"
    ),
    "dense top-1": lambda results, found: f"{100 * found.dense_accuracy:.2f}",
    **of(MEASURED),
}
MEANING = (
    "Does it pay that a model decides how much to compute for each image? *Top-1 at cost* is the model as it is, with one set "
    "of thresholds for all images; ± is the deviation of the cost over images, in brackets are the cheapest and the dearest. "
    "At *the same cost for every image* the thresholds of each image are shifted together until it costs what the model costs "
    "in the mean: gates still choose what an image uses, no longer how much. Where they cannot meet that cost the nearest "
    "counts; ± is the deviation of the cost reached. Images *lost* are right only by the model's own thresholds, images "
    "*gained* only at the same cost: where the two numbers are close, no gain from different costs is shown. The *correlation* "
    "is Spearman's, of an image's cost with its cross-entropy loss in the dense model of the same weights: 1 where harder "
    "images cost more, 0 where cost has nothing to do with difficulty. *Dense top-1* is that dense model's, on the same images."
)


def per_image_items(evaluations):
    """The items of `PER_IMAGE`: of those evaluations in which images were measured one by one."""
    return [(one, one.per_image) for one in evaluations if one.per_image]
