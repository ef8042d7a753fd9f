"""The kind of results that recipes/export.py writes, and their table: a model in a runtime, beside the dense one there."""

from dataclasses import dataclass
from typing import ClassVar

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
        looks: mean number of looks, 1 without a cascade. ms: "exported", "dense" (same runtime), "packed" (PyTorch) -> of an
            image alone; {} where nothing was timed.
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
    ms: dict
    rounds: int
    merges: str = "own"  # as in `deploy.export`
    kernels: bool = False  # whether the packed model ran with them

    def speedup(self):
        """Over the dense model in the same runtime."""
        return self.ms["dense"] / self.ms["exported"]


GAINED = {
    "runtime": lambda results: (
        f"{results.format}, {results.quantize or 'float32'}, batch {results.batch}"
        + (", fixed merges" if results.merges == "fixed" else "")
    ),
    "decides": lambda results: results.decides,
    "data": lambda results: f"{results.images} images of {results.dataset}",
    "cost": lambda results: f"{results.cost:.3f}",
    "dense there, ms": lambda results: f"{results.ms['dense']:.1f}",
    "this model there, ms": lambda results: f"{results.ms['exported']:.1f}",
    "speed-up": lambda results: f"{results.speedup():.2f}×",
    "this model in PyTorch, ms": lambda results: f"{results.ms['packed']:.1f}" + (" (kernels)" * results.kernels),
    "same prediction": lambda results: f"{results.top1:.1%}",
    "device": place,
    "commit": MEASURED["commit"],
}
GAINED_MEANING = (
    "In the runtimes of a CPU, one image at a time, against the plain ViT exported to the same one. *Fixed merges*: as many for "
    "every image, so that the runtime knows all sizes ahead; the prediction is compared with the model's own merges. In each "
    "way the one that gains most; the others stand in all tables."
)
DEPLOYED = {
    "model": lambda results: short(results.model),
    "decides": lambda results: results.decides,
    "runtime": GAINED["runtime"],
    "data": GAINED["data"],
    "cost": GAINED["cost"],
    "looks": lambda results: f"{results.looks:.2f}",
    "same prediction as PyTorch": lambda results: f"{results.top1:.1%}",
    "largest difference of logits": lambda results: ABSENT if results.largest is None else f"{results.largest:.1e}",
    "ms of an image": lambda results: f"{results.ms['exported']:.1f}" if results.ms else ABSENT,
    "dense, same runtime": lambda results: f"{results.ms['dense']:.1f}" if results.ms else ABSENT,
    "speed-up": lambda results: f"{results.speedup():.2f}×" if results.ms else ABSENT,
    "of the MACs' promise": lambda results: f"{results.cost * results.speedup():.2f}" if results.ms else ABSENT,
    "packed in PyTorch": lambda results: f"{results.ms['packed']:.1f}" if results.ms else ABSENT,
    "with kernels": lambda results: "yes" if results.kernels else "no",
    "threads": lambda results: results.threads,
    "device": lambda results: processor(results),
    **of({name: MEASURED[name] for name in ("seed", "commit", "command")}),
}
MEANING = (
    "One image at a time, the mean over different images. *Dense* is the plain ViT on the images as they come, exported in the same "
    "way; *packed* is the same model in PyTorch, prepacked, with its own merges. *Fixed merges* are others, so that logits differ."
)


def fastest_deployed(deployments):
    """Of `Deployment`s that were timed the one of each runtime, and way to run there, that gains most."""
    best = {}
    for one in sorted(deployments, key=lambda one: -one.speedup()):
        best.setdefault(GAINED["runtime"](one), one)
    return [best[runtime] for runtime in sorted(best)]
