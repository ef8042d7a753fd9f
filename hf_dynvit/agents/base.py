"""`Agent`: the contract of what chooses the patches of a training forward.

Letters: B images, n patches (no [CLS]), K kept patches.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Moment(NamedTuple):
    """Where training stands when a batch comes."""

    batch: int = 0  # batches before this one, in the whole training
    batch_in_epoch: int = 1  # number of this one in its epoch, from 1
    epoch: int = 0  # from 0
    progress: float = 0.0  # share of the training steps that are done


class Agent:
    """Chooses patches; subclasses define `choose`, and `Options`, whose fields are what `agent_options` may set.

    Args:
        model: the unwrapped `DynViTForImageClassification`; it is read, never changed.
        desired: patches to keep, 1..n.
        options: of the class's `Options`.
        device: where the agent's own networks live.
        seed: of its generator and its initial weights; the global generators are left alone.

    Attributes:
        grid: the model's patch embeddings. sides: rows and columns of patches. patches: n, how many they are.
        generator: all that an agent draws comes from it. logged: name -> values noted since the last logs.
    """

    @dataclass
    class Options:
        """Nothing to choose."""

    layers_needed = 1
    networks = ()  # names of the modules that a checkpoint keeps, together with what `optimizer` has gathered

    def __init__(self, model, desired, options, device, seed):
        self.model, self.desired, self.options, self.device, self.seed = model, desired, options, device, seed
        self.grid = model.vit.embeddings.patch_embeddings
        self.sides = tuple(a // b for a, b in zip(self.grid.image_size, self.grid.patch_size, strict=True))
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

    def count(self, moment, explore=True):
        """K by the option `return_fraction`: the last part of training over which it rises to all patches."""
        progress = moment.progress if explore else 0.0
        return kept_count(progress, self.desired, self.patches, self.options.return_fraction)

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
        state = {"generator": self.generator.get_state()}
        if self.networks:
            state["optimizer"] = self.optimizer.state_dict()["state"]  # its settings are those of the run
        return state | {name: getattr(self, name).state_dict() for name in self.networks}

    def load_state_dict(self, saved):
        self.generator.set_state(saved["generator"])
        for name in self.networks:
            getattr(self, name).load_state_dict(saved[name])
        if self.networks:
            settings = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": settings})


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
