"""The table of cascades: what each look is worth, and what it is worth that an image decides how many it takes."""

from .markdown import ABSENT
from .names import model_name, reported_on, short
from .tables import MEASURED, of


LOOKS = {  # of an evaluation and its `Looks`
    "model": lambda results, found: short(results.model),
    "data": lambda results, found: results.dataset,
    "decides": lambda results, found: model_name(results),
    "images": lambda results, found: reported_on(results),
    "top-1 at cost": lambda results, found: f"{100 * results.accuracy:.2f} at {results.cost:.3f}",
    "images by looks taken": lambda results, found: ", ".join(f"{share:.1%}" for share in found.shares),
    "as many looks, at random": lambda results, found: f"{100 * found.at_random:.2f}",
    "all images after one look, two, ...": lambda results, found: ", ".join(
        f"{100 * accuracy:.2f} at {cost:.3f}" for accuracy, cost in zip(found.accuracy, found.cost, strict=True)
    ),
    "dense top-1": lambda results, found: f"{100 * results.dense.accuracy:.2f}" if results.dense else ABSENT,
    **of(MEASURED),
}
MEANING = (
    "A cascade gives another look to the images that it is not sure of. *At random*: the expected top-1 if as many images, "
    "whichever, took as many looks; the difference is what the decision per image is worth. *After one look, two, ...*: if all "
    "images took as many."
)


def looks_items(evaluations):
    """The items of `LOOKS`: the evaluations of cascades."""
    return [(one, one.looks) for one in evaluations if one.looks]
