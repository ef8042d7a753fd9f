"""`SearchArguments`: arguments of a search for masks, and what it takes from the training of its model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.hf_argparser import HfArg

from ..measure.files import read_json
from ..measure.forwards import DTYPES
from ..objectives.policy_gradient import REWARDS
from .masks import GRANULARITIES, Reward
from .pareto import METHODS, OBJECTIVES


FILE = "results.json"  # what recipes/train.py writes beside a model
SAME_DATA = ("dataset_name", "dataset_config_name", "data_dir", "train_split")
# What may change between two searches that share their scores; the reward counts as a whole.
OF_SEARCH = ("output", "min_accuracy", "max_cost", "burn_in", "population", "generations", "method", "objectives")
NOT_OF_SCORES = (*OF_SEARCH, "reward", "price", "penalty", "latency", "latency_batch_size")
RENAMED = {"error+latency": "error+milliseconds"}  # objectives by names of before


@dataclass
class SearchArguments:
    """What to search, how, and where to write it."""

    model: str | None = HfArg(default=None, help="a plain ViT or a model with gates: folder or Hub id")
    output: str | None = HfArg(default=None, help="folder for the results")
    objectives: str = HfArg(
        default="error+cost",
        help=f"one of {sorted(OBJECTIVES)}; those with reward are the joint search of policy and mask",
    )
    latency: str | None = HfArg(
        default=None,
        help="latency.json of this model on the device to be served by, as calibrate.py and this search write it; none: "
        "this device is measured where milliseconds are asked for",
    )
    latency_batch_size: int = HfArg(default=1, help="images of a forward to measure latencies of")
    policy: str = HfArg(default="act", help="gates 'act' inside the mask, or all 'process' whatever the mask leaves")
    granularity: str = HfArg(default="block", help=f"one of {GRANULARITIES}")
    always_keep: list[int] = HfArg(default_factory=lambda: [0], help="layers no mask switches off; -1: none")
    method: str = HfArg(default="auto", help=f"one of {METHODS}; auto: exhaustive up to 6 bits")
    population: int = HfArg(default=24, help="masks per generation")
    generations: int = HfArg(default=12, help="generations of NSGA-II")
    images: int = HfArg(default=1000, help="images, half to choose on, half to report on")
    search_split: str | None = HfArg(
        default=None,
        help="the split that is halved to choose and to report on, e.g. validation, for checkpoints that have seen all "
        "of train; none: the part of train that validation_fraction holds out",
    )
    reward: str = HfArg(
        default="auto",
        help=f"one of {('auto', *REWARDS)}; auto: what the policy was trained with, by the results.json beside it, else "
        "'correct'",
    )
    price: float | None = HfArg(
        default=None,
        help="cost penalty: what a cost of 1 takes from the reward; none: that of the policy's training, else 1",
    )
    penalty: float | None = HfArg(
        default=None, help="of a wrong prediction, reward 'blockdrop'; none: that of the policy's training, else 1"
    )
    min_accuracy: float | None = HfArg(
        default=None, help="pick the cheapest mask of at least this accuracy, instead of the knee"
    )
    max_cost: float | None = HfArg(
        default=None, help="pick the most accurate mask of at most this cost, instead of the knee"
    )
    burn_in: bool = HfArg(default=False, help="also save the picked model without its unused layers")
    batch_size: int = HfArg(default=64, help="images per forward")
    dtype: str = HfArg(default="float32", help=f"of products, one of {list(DTYPES)}")
    device: str = HfArg(default="auto", help="cpu, cuda, ...; auto: CUDA where there is one")
    seed: int = HfArg(default=0, help="of the search and of the held-out images")

    def __post_init__(self):
        if not self.model or not self.output:
            raise ValueError(f"--model and --output are needed, got {self.model!r} and {self.output!r}")
        self.objectives = RENAMED.get(self.objectives, self.objectives)
        choices = {"objectives": OBJECTIVES, "granularity": GRANULARITIES, "method": METHODS, "dtype": DTYPES}
        choices["reward"] = ("auto", *REWARDS)
        for name, known in {**choices, "policy": ("act", "process")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {sorted(known)}, got {getattr(self, name)!r}")
        if self.images < 2:
            raise ValueError(f"images must be at least 2, got {self.images}")
        if self.latency_batch_size < 1:
            raise ValueError(f"latency_batch_size must be at least 1, got {self.latency_batch_size}")
        if self.min_accuracy is not None and self.max_cost is not None:
            raise ValueError(f"give min_accuracy or max_cost, not both: got {self.min_accuracy} and {self.max_cost}")
        if self.min_accuracy is not None and not 0.0 <= self.min_accuracy <= 1.0:
            raise ValueError(f"min_accuracy must be a share in [0, 1], got {self.min_accuracy}")
        self.always_keep = [layer for layer in self.always_keep if layer != -1]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"


def training_of(model):
    """The content of results.json in the folder `model`, or None: a Hub id, no such file, or of another kind.

    Raises:
        ValueError: a file that is no JSON.
    """
    file = Path(model) / FILE
    results = read_json(file) if file.is_file() else None
    return results if isinstance(results, dict) and results.get("kind") == "training" else None


def reward_of(args, trained):
    """The `Reward` of a search: options first, then what the policy was trained with, then the defaults.

    A cost penalty (`price`) that followed a budget in training is its mean over the last quarter of the logs.

    Args:
        args: `SearchArguments`. trained: as `training_of` gives it.
    """
    taught, default = {} if trained is None else trained["settings"]["training"], Reward()
    of_policy = taught.get("objective") == "reinforce"
    sources = {"reward": "option" if args.reward != "auto" else "training" if of_policy else "default"}
    kind = {"option": args.reward, "training": taught.get("reward"), "default": default.kind}[sources["reward"]]
    known = {}
    if of_policy and taught["reward"] == kind:  # the numbers of another reward mean something else
        known = {name: taught.get(name) for name in ("price", "penalty", "cost_weights")}
        if taught["price_gain"]:
            known["price"] = trained.get("price")
    values = {"cost_weights": known.get("cost_weights", default.cost_weights)}
    for name in ("price", "penalty"):
        choices = {"option": getattr(args, name), "training": known.get(name), "default": getattr(default, name)}
        sources[name] = next(source for source, value in choices.items() if value is not None)
        values[name] = choices[sources[name]]
    return Reward(kind, **values, source=", ".join(f"{name}: {source}" for name, source in sources.items()))


def split_of(args, data_args):
    """The split that is halved, None for the part of train that is held out."""
    return None if args.search_split in (None, data_args.train_split) else args.search_split


def images_from(args, data_args, trained):
    """Where the images to choose and to report on come from, and whether the model was trained on them: two strings.

    Only the last training is known; a checkpoint that it began from may have seen any image of train.
    """
    split = split_of(args, data_args)
    if split is not None:
        return f"halves of {split}", f"one half of {split} to choose on, the other to report on; none are of train"
    name = f"held out of {data_args.train_split}"
    if trained is None:
        return name, f"{name} by this search; no {FILE} beside the model says whether it was trained on them"
    before = trained["settings"]["data"]
    if _source(before) != _source(vars(data_args)):
        return name, f"{name} by this search; the model was trained on other data ({trained['dataset']})"
    fraction, seed = before["validation_fraction"], trained["seed"]
    if (fraction, seed) == (data_args.validation_fraction, args.seed):
        return name, f"{name} in the model's training too; the checkpoint that it began from may have seen them"
    return name, (
        f"{name} by this search, but the model was trained on {'most' if fraction else 'all'} of them: its training "
        f"held out a fraction of {fraction} by seed {seed}, not {data_args.validation_fraction} by seed {args.seed}"
    )


def _source(data):
    """What says which images train holds, of the fields of `ImageArguments`."""
    prefix = f"{data['train_split']}="
    files = [word for word in data.get("data_files") or [] if word.startswith(prefix)]
    paths = sorted(str(Path(word.removeprefix(prefix)).resolve()) for word in files)
    return [data.get(key) for key in SAME_DATA], paths
