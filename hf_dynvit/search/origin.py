"""What a search knows of the training that its model comes from: the reward, and whether it saw the images."""

from pathlib import Path
from typing import NamedTuple

from ..measure.json_files import read_json


FILE = "results.json"  # what recipes/train.py writes beside a model
DEFAULT_REWARD, DEFAULT_PRICE, DEFAULT_PENALTY = "correct", 1.0, 1.0
SAME_DATA = ("dataset_name", "dataset_config_name", "data_dir", "train_split")


class Reward(NamedTuple):
    """What a joint search pays for; `kind`, `price` and `penalty` as in `policy_gradient.terminal_reward`.

    Attributes:
        cost_weights: as in `DynViTTrainingArguments`; "uniform" counts the cost of the whole model, whose stem and
            classifier add the same to every mask.
        source: where the values come from, in words.
    """

    kind: str = DEFAULT_REWARD
    price: float = DEFAULT_PRICE
    penalty: float = DEFAULT_PENALTY
    cost_weights: str = "uniform"
    source: str = "default"


def training_of(model):
    """The content of results.json in the folder `model`, or None: a Hub id, no such file, or of another kind.

    Raises:
        ValueError: a file that is no JSON.
    """
    file = Path(model) / FILE
    if not file.is_file():
        return None
    results = read_json(file)
    return results if isinstance(results, dict) and results.get("kind") == "training" else None


def reward_of(args, trained):
    """The `Reward` of a search: options first, then what the policy was trained with, then the defaults.

    A price that followed a budget in training is the mean that results.json holds of the last quarter of its logs.

    Args:
        args: `SearchArguments`. trained: as `training_of` gives it.
    """
    taught = {} if trained is None else trained["settings"]["training"]
    of_policy = taught.get("objective") == "reinforce"
    kind = args.reward
    if kind == "auto":
        kind = taught["reward"] if of_policy else DEFAULT_REWARD
    # The numbers of another reward mean something else.
    same = of_policy and taught["reward"] == kind
    fixed = same and not taught["price_gain"]
    learned = {
        "price": (taught["price"] if fixed else trained.get("price")) if same else None,
        "penalty": taught["penalty"] if same else None,
    }
    values, sources = {}, [f"reward: {'option' if args.reward != 'auto' else 'training' if of_policy else 'default'}"]
    for name, default in (("price", DEFAULT_PRICE), ("penalty", DEFAULT_PENALTY)):
        choices = {"option": getattr(args, name), "training": learned[name], "default": default}
        source = next(source for source, value in choices.items() if value is not None)
        values[name] = choices[source]
        sources.append(f"{name}: {source}")
    return Reward(
        kind, **values, cost_weights=taught["cost_weights"] if same else "uniform", source=", ".join(sources)
    )


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
    """What says which images train holds, of the fields of `DataArguments`."""
    prefix = f"{data['train_split']}="
    files = [word for word in data.get("data_files") or [] if word.startswith(prefix)]
    paths = sorted(str(Path(word.removeprefix(prefix)).resolve()) for word in files)
    return [data.get(key) for key in SAME_DATA], paths
