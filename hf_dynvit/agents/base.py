"""The contract of patch agents: when a batch comes they say which patches the training forward runs on.

Letters: B images, n patches (no [CLS]), K kept patches.
"""

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch


class Moment(NamedTuple):
    """Where training stands when a batch comes.

    Attributes:
        batch: batches before this one, in the whole training.
        batch_in_epoch: number of this one in its epoch, from 1.
        epoch: from 0.
        progress: share of the training steps that are done.
    """

    batch: int = 0
    batch_in_epoch: int = 1
    epoch: int = 0
    progress: float = 0.0


class Agent:
    """Chooses patches; subclasses define `choose`, and `Options`, whose fields are what `agent_options` may set.

    Args:
        model: the unwrapped `DynViTForImageClassification`; it is read, never changed.
        desired: patches to keep, 1..n.
        options: of the class's `Options`.
        device: where the agent's own networks live.
        seed: of its generator and its initial weights; the global generators are left alone.
    """

    @dataclass
    class Options:
        """Nothing to choose."""

    layers_needed = 1

    def __init__(self, model, desired, options, device, seed):
        self.model, self.desired, self.options, self.device, self.seed = model, desired, options, device, seed
        self.grid = model.vit.embeddings.patch_embeddings
        self.patches = model.num_tokens - 1
        self.generator = torch.Generator().manual_seed(seed)
        self.logged = {}

    @property
    def merges(self):
        """Whether the patches that are left out leave their content to those that are kept."""
        return getattr(self.options, "merge", False)

    def choose(self, pixel_values, moment, explore=True):
        """Indices of the patches to keep, int64 (K,) for all images or (B, K) for each, or None for all patches.

        Args:
            explore: no: the choice the agent holds best; it changes no state.
        """
        raise NotImplementedError

    def begin(self, batches, per_epoch):
        """Called before training with how many batches it will have, and how many an epoch."""

    def report(self, batches):
        """What results say of the agent after `batches` batches, JSON-ready."""
        return {}

    def choice_macs(self):
        """MACs per image of a choice with `explore=False`, beyond the model's own forward."""
        return 0

    def observe(self, pixel_values, labels, outputs, moment):
        """Called with the outputs of the forward on the patches chosen last, before the model's step."""

    def after_step(self):
        """Called after the model's optimiser step."""

    def log(self, **values):
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)

    def state_dict(self):
        """All that resuming needs, as (nested) dicts and lists of tensors."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, saved):
        self.generator.set_state(saved["generator"])


def kept_count(progress, desired, patches, return_fraction):
    """Patches to keep: `desired`, then over the last `return_fraction` of training linearly up to all of them.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    begin = 1.0 - return_fraction
    if progress <= begin:
        return desired
    return min(patches, round(desired + (patches - desired) * (progress - begin) / return_fraction))


def build_seeded(seed, build):
    """build() with the global CPU generator seeded, which is then as it was: agents leave no trace in the data order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def linear_macs(network):
    """MACs of one row through a network of linear layers."""
    return sum(weight.numel() for weight in network.parameters() if weight.ndim == 2)


def optimizer_tensors(optimizer):
    """What an optimiser has gathered, without its settings, which are those of the run."""
    return optimizer.state_dict()["state"]


def load_optimizer_tensors(optimizer, saved):
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})


def parse_options(name, kind, defaults, given):
    """An instance of the `Options` of agent class `kind`.

    Raises:
        ValueError: an option that the agent does not have, or a value of another type or out of range.
    """
    known = {option.name: option for option in fields(kind.Options)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"agent {name!r} has no option {key!r}; its options are {sorted(known)}")
        wanted, fits = _what_fits(known[key], value)
        if not fits:
            raise ValueError(f"option {key} of agent {name!r} must be {wanted}, got {value!r}")
    return kind.Options(**{**defaults, **given})


def share(default):
    """An option that is a number in [0, 1]."""
    return field(default=default, metadata={"most": 1.0})


def choice(*names):
    """An option that is one of `names`, the first unless given."""
    return field(default=names[0], metadata={"choices": names})


def _what_fits(option, value):
    """What an option may be, in words, and whether the value is."""
    default, most = option.default, option.metadata.get("most", math.inf)
    if isinstance(default, str):
        return f"one of {option.metadata['choices']}", value in option.metadata["choices"]
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    words = "a whole number" if isinstance(default, int) else "a number"
    words += " of at least 0" if most == math.inf else f" in [0, {most:g}]"
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    return words, number and math.isfinite(value) and (not isinstance(default, int) or value == int(value))
