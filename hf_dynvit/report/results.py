"""The kinds of results: what the recipes and the benchmark write as JSON, and what the tables read."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from ..measure.forwards import RandomSpeed
from ..measure.looks import Looks
from ..measure.per_image import PerImage
from ..measure.speed import Speed
from .schema import Results


@dataclass(kw_only=True)
class Scores:
    """Accuracy and cost on a set of images: shares, cost relative to the dense model with its spread over the images.

    Where an image may have several labels, accuracy is the share of images of which all are right, and there is no top-5.
    """

    accuracy: float
    accuracy_top5: float | None
    cost: float
    gmacs: float
    cost_std: float = 0.0
    cost_min: float | None = None
    cost_max: float | None = None
    loss: float | None = None


@dataclass(kw_only=True)
class ModelResults(Scores, Results):
    """What a training and an evaluation say of a model.

    Attributes:
        gates, preset, learned: of `gate_facts`. usage: of `UsageMeter.per_layer`.
        resolution: what images are resized to inside the model; None: nothing. cascade: the looks of one; None: no cascade.
        last_layer: as in `DynViTConfig`.
        images: how many were reported on. crop_pct: share of their shorter side that the model saw; None: all of it. dense: the dense model on the same ones.
    """

    gates: list | None
    preset: str | None
    learned: dict
    layer_mask: list | None
    num_layers: int
    dataset: str
    split: str
    split_files: list
    images: int
    gmacs_dense: float
    usage: dict
    batch_size: int
    dense: Scores | None = None
    resolution: int | list | None = None
    cascade: list | None = None
    last_layer: str | None = None
    crop_pct: float | None = None

    def is_dense(self):
        """Whether it runs all of the dense model, on images as they come."""
        return not (self.gates or self.layer_mask or self.resolution or self.cascade or self.last_layer)


@dataclass(kw_only=True)
class AgentRun:
    """A patch agent after its training; `details`: what this kind of agent says besides."""

    name: str
    n_patch_desired: int
    patches: int
    kept: float
    seconds: float
    options: dict
    epsilon: float | None = None
    details: dict = field(default_factory=dict)

    @classmethod
    def of(cls, report):
        """Of `PatchAgent.report()`."""
        known = {entry.name: report[entry.name] for entry in fields(cls) if entry.name in report}
        return cls(**known, details={name: value for name, value in report.items() if name not in known})


@dataclass(kw_only=True)
class Training(ModelResults):
    """results.json of recipes/train.py.

    Attributes:
        start_weights: digest of the checkpoint. price: of cost at the end of a policy's training.
        chosen: the model on the patches alone that its agent chooses. checkpoint: what training began from, where that
            had gates. settings: "model", "data" and "training" -> option -> value.
    """

    kind: ClassVar[str] = "training"
    start_weights: str | None
    price: float | None
    train_seconds: float
    agent: AgentRun | None
    chosen: Scores | None
    resumed: bool
    images_seen: int
    epochs: float
    steps: int
    processes: int
    settings: dict
    checkpoint: Scores | None = None

    @property
    def terms(self):
        """Licence, terms of the data and Hub ids, as `write_model_card` takes them."""
        data, hub_id = self.settings["data"], self.settings["training"].get("hub_model_id")
        name = data.get("dataset_name")
        return {name: self.settings["model"].get(name) for name in ("license", "dataset_terms")} | {
            "datasets": None if name in (None, "imagefolder") else [name],
            "model_id": None if hub_id in (None, "None") else hub_id,
        }

    def option(self, name):
        """A training option by its name, wherever the settings keep it; None if they do not."""
        training = self.settings["training"]
        own = training.get("objective_options")
        return own[name] if isinstance(own, dict) and name in own else training.get(name)


@dataclass(kw_only=True)
class Runtime:
    """The dense model in another runtime: its accuracy, and the share of guesses that it shares; or why it is not there."""

    accuracy: float | None = None
    images: int | None = None
    agrees: float | None = None
    skipped: str | None = None


@dataclass(kw_only=True)
class Evaluation(ModelResults):
    """The JSON of recipes/evaluate.py; `dense` is of `dense_model`; `budgets`: of the model's table, None without one;
    `looks`: of a cascade."""

    kind: ClassVar[str] = "evaluation"
    model: str
    budget: float | None
    dense_model: str | None
    throughput: list[Speed] = field(default_factory=list)
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    per_image: PerImage | None = None
    budgets: list | None = None
    looks: Looks | None = None

    def speeds(self):
        return self.throughput


@dataclass(kw_only=True)
class Demo(Evaluation):
    """results.json of recipes/demo.py; `by_difficulty`: "easy" and "hard" -> images, accuracy, cost."""

    kind: ClassVar[str] = "demo"
    by_difficulty: dict


@dataclass(kw_only=True)
class Search(Results):
    """front.json of recipes/search.py; a point of the front is a dict of scores with "reported", the same on other images; `latencies`: the fields of a `LatencyTable`."""

    kind: ClassVar[str] = "search"
    model: str
    objectives: str
    method: str
    space: str
    masks_scored: int
    seconds: float
    images_to_choose_on: int
    images_reported_on: int
    dataset: str
    split: str
    images_from: str
    reward: dict
    latencies: dict | None
    unmasked: dict
    picked: dict
    front: list
    settings: dict


@dataclass(kw_only=True)
class Step:
    """A kind of training step, with random decisions of `gates` or with a patch agent by its best attention kernel.

    Attributes:
        time_ratio, memory_ratio: of the dense step. learn_every: steps of which the agent learns in one.
    """

    cost: float
    ms: float
    peak_mib: float
    time_ratio: float
    memory_ratio: float
    gates: str | None = None
    agent: str | None = None
    kernel: str | None = None
    kept: float | None = None
    patches: int | None = None
    n_patch_desired: int | None = None
    learn_every: int | None = None
    step_ms: dict | None = None


@dataclass(kw_only=True)
class StepTime(Results):
    """The JSON of recipes/step_time.py; the dense step is by the fastest kernel, its memory that of the leanest."""

    kind: ClassVar[str] = "step_time"
    model: str
    batch_size: int
    rounds: int
    dense_ms: dict
    leanest: str
    dense_peak_mib: float
    steps: list[Step]


@dataclass(kw_only=True)
class Benchmark(Results):
    """The JSON of `python -m hf_dynvit.benchmark`: random decisions of a given cost."""

    kind: ClassVar[str] = "benchmark"
    rows: list[RandomSpeed]

    def speeds(self):
        return self.rows
