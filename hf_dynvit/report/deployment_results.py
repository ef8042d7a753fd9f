"""The kind of results that recipes/export.py writes, and their table: a model in a runtime, beside the dense one there."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..measure.timing import Timing
from .markdown import ABSENT
from .names import place, processor, short
from .schema import Results
from .tables import MEASURED, of


@dataclass(kw_only=True)
class Deployment(Results):
    """deployment.json of recipes/export.py.

    Attributes:
        largest: difference of logits from PyTorch's. same, top1: share of images with the same decisions, and prediction. Of
            fixed merges the first two are None.
        looks: mean number of looks, 1 without a cascade. timings: by batch size, [] where nothing was timed.
    """

    kind: ClassVar[str] = "deployment"
    model: str
    decides: str
    format: str
    batch: str
    quantize: str | None
    dataset: str
    images: int
    largest: float | None
    same: float | None
    top1: float
    cost: float
    looks: float
    merges: str = "own"  # as in `deploy.export`
    accuracy: float | None = None  # in the runtime, and of the model in PyTorch, on the same images
    accuracy_packed: float | None = None
    kernels: bool = False  # whether the packed model ran with them
    timings: list[Timing] = field(default_factory=list)


def runtime(results):
    """ "openvino, int8, batch one, fixed merges": how it runs where."""
    return f"{results.format}, {results.quantize or 'float32'}, batch {results.batch}" + (
        ", fixed merges" if results.merges == "fixed" else ""
    )


GAINED = {
    "runtime": lambda results, timing: runtime(results),
    "decides": lambda results, timing: results.decides,
    "data": lambda results, timing: f"{timing.images if timing else results.images} images of {results.dataset}",
    "cost": lambda results, timing: f"{timing.cost if timing else results.cost:.3f}",
    "dense there, ms": lambda results, timing: f"{timing.dense:.1f}",
    "this model there, ms": lambda results, timing: f"{timing.exported:.1f}",
    "speed-up": lambda results, timing: f"{timing.speedup():.2f}×",
    "this model in PyTorch, ms": lambda results, timing: f"{timing.packed:.1f}" + (" (kernels)" * results.kernels),
    "same prediction": lambda results, timing: f"{results.top1:.1%} of {results.images}",
    "device": lambda results, timing: place(results),
    "commit": lambda results, timing: results.commit,
}
GAINED_MEANING = (
    "In the runtimes of a CPU, one image at a time, against the plain ViT exported to the same one. *Fixed merges*: as many for "
    "every image, so that the runtime knows all sizes ahead; the prediction is compared with the model's own merges. In each "
    "way the one that gains most; the others stand in all tables."
)
DEPLOYED = {
    "model": lambda results, timing: short(results.model),
    "decides": GAINED["decides"],
    "runtime": GAINED["runtime"],
    "data": GAINED["data"],
    "cost": GAINED["cost"],
    "looks": lambda results, timing: f"{results.looks:.2f}",
    "same prediction as PyTorch": GAINED["same prediction"],
    "top-1 there, in PyTorch": lambda results, timing: (
        ABSENT if results.accuracy is None else f"{100 * results.accuracy:.2f}, {100 * results.accuracy_packed:.2f}"
    ),
    "largest difference of logits": lambda results, timing: (
        ABSENT if results.largest is None else f"{results.largest:.1e}"
    ),
    "batch size": lambda results, timing: timing.batch_size if timing else ABSENT,
    "ms of an image": lambda results, timing: f"{timing.exported:.1f}" if timing else ABSENT,
    "dense, same runtime": lambda results, timing: f"{timing.dense:.1f}" if timing else ABSENT,
    "speed-up": lambda results, timing: f"{timing.speedup():.2f}×" if timing else ABSENT,
    "of the MACs' promise": lambda results, timing: f"{timing.realised():.2f}" if timing else ABSENT,
    "packed in PyTorch": lambda results, timing: f"{timing.packed:.1f}" if timing else ABSENT,
    "with kernels": lambda results, timing: "yes" if results.kernels else "no",
    "threads": lambda results, timing: results.threads,
    "device": lambda results, timing: processor(results),
    **of({name: MEASURED[name] for name in ("seed", "commit", "command")}),
}
MEANING = (
    "The mean over different images; of several together they are a batch or, where the export takes single images, run in parallel streams. *Dense* is the plain ViT on the images as they come, exported in the same "
    "way; *packed* is the same model in PyTorch, prepacked, with its own merges. *Fixed merges* are others, so that logits differ."
)


def deployed_items(deployments):
    """Arguments of `DEPLOYED`: a row for each batch size that was timed, or one."""
    return [(one, timing) for one in deployments for timing in one.timings or [None]]


def fastest_deployed(deployments):
    """Arguments of `GAINED`: of models that were timed on one image the one of each runtime, and way to run there, that gains
    most. Not one that is never right: its weights are random, for the sake of its times."""
    useful = [one for one in deployments if one.accuracy != 0]
    timed = [(one, timing) for one, timing in deployed_items(useful) if timing and timing.batch_size == 1]
    best = {}
    for one, timing in sorted(timed, key=lambda item: -item[1].speedup()):
        best.setdefault(runtime(one), (one, timing))
    return [best[name] for name in sorted(best)]
