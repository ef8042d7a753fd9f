"""What a search for masks (recipes/search.py) may be told."""

from dataclasses import dataclass, field

import torch

from ..measure.forwards import DTYPES
from ..objectives.policy_gradient import REWARDS
from .masks import GRANULARITIES
from .search import OBJECTIVES


METHODS = ("auto", "nsga2", "exhaustive")
# What may change between two searches that share their scores.
NOT_OF_SCORES = (
    "output",
    "min_accuracy",
    "max_cost",
    "burn_in",
    "population",
    "generations",
    "method",
    "objectives",
    "price",  # these three are in the reward that they make
    "penalty",
    "reward",
)


@dataclass
class SearchArguments:
    """What to search, how, and where to write it."""

    model: str | None = field(default=None, metadata={"help": "a plain ViT or a model with gates: folder or Hub id"})
    output: str | None = field(default=None, metadata={"help": "folder for the results"})
    objectives: str = field(
        default="error+cost",
        metadata={"help": f"one of {sorted(OBJECTIVES)}; reward+layers is the joint search of policy and mask"},
    )
    policy: str = field(
        default="act", metadata={"help": "gates 'act' inside the mask, or all 'process' whatever the mask leaves"}
    )
    granularity: str = field(default="block", metadata={"help": f"one of {GRANULARITIES}"})
    always_keep: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "layers no mask switches off; -1: none"}
    )
    method: str = field(default="auto", metadata={"help": f"one of {METHODS}; auto: exhaustive up to 6 bits"})
    population: int = field(default=24, metadata={"help": "masks per generation"})
    generations: int = field(default=12, metadata={"help": "generations of NSGA-II"})
    images: int = field(default=1000, metadata={"help": "images, half to choose on, half to report on"})
    search_split: str | None = field(
        default=None,
        metadata={
            "help": "the split that is halved to choose and to report on, e.g. validation, for checkpoints that have "
            "seen all of train; none: the part of train that validation_fraction holds out"
        },
    )
    reward: str = field(
        default="auto",
        metadata={
            "help": f"one of {('auto', *REWARDS)}; auto: what the policy was trained with, by the results.json beside "
            "it, else 'correct'"
        },
    )
    price: float | None = field(
        default=None,
        metadata={"help": "what a cost of 1 takes from the reward; none: that of the policy's training, else 1"},
    )
    penalty: float | None = field(
        default=None,
        metadata={"help": "of a wrong prediction, reward 'blockdrop'; none: that of the policy's training, else 1"},
    )
    min_accuracy: float | None = field(
        default=None, metadata={"help": "pick the cheapest mask of at least this accuracy, instead of the knee"}
    )
    max_cost: float | None = field(
        default=None, metadata={"help": "pick the most accurate mask of at most this cost, instead of the knee"}
    )
    burn_in: bool = field(default=False, metadata={"help": "also save the picked model without its unused layers"})
    batch_size: int = field(default=64, metadata={"help": "images per forward"})
    dtype: str = field(default="float32", metadata={"help": f"of products, one of {list(DTYPES)}"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto: CUDA where there is one"})
    seed: int = field(default=0, metadata={"help": "of the search and of the held-out images"})

    def __post_init__(self):
        if not self.model or not self.output:
            raise ValueError(f"--model and --output are needed, got {self.model!r} and {self.output!r}")
        choices = {"objectives": OBJECTIVES, "granularity": GRANULARITIES, "method": METHODS, "dtype": DTYPES}
        choices["reward"] = ("auto", *REWARDS)
        for name, known in {**choices, "policy": ("act", "process")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {sorted(known)}, got {getattr(self, name)!r}")
        if self.images < 2:
            raise ValueError(f"images must be at least 2, got {self.images}")
        if self.min_accuracy is not None and self.max_cost is not None:
            raise ValueError(f"give min_accuracy or max_cost, not both: got {self.min_accuracy} and {self.max_cost}")
        self.always_keep = [layer for layer in self.always_keep if layer != -1]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
