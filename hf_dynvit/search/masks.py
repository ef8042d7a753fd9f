"""`MaskSpace`: static masks as bits, and `MaskScores`: error, cost, milliseconds and reward of a model under each."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import torch

from ..measure.files import write_json
from ..model.cost import layer_shares
from ..model.gate_random import draws_at_random
from ..objectives.policy_gradient import depth_weights, outcome, terminal_reward


GRANULARITIES = ("block", "sublayer")
EXHAUSTIVE_BITS = 12
NOT_OF_MODEL = ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "layer_mask")


class MaskSpace:
    """Masks over the blocks or sub-layers that are not always kept.

    Args:
        num_layers: L. granularity: one of `GRANULARITIES`. always_keep: layers that no mask switches off.

    Attributes:
        units: for each bit the (layer, sub-layer) pairs it switches; sub-layer 0 is attention, 1 the MLP.

    Raises:
        ValueError: nothing to search, or layers that do not exist.
    """

    def __init__(self, num_layers, granularity="block", always_keep=(0,)):
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}, got {granularity!r}")
        wrong = sorted(layer for layer in always_keep if not 0 <= layer < num_layers)
        if wrong:
            raise ValueError(f"always_keep must be in 0..{num_layers - 1}, got {wrong}")
        self.num_layers, self.granularity, self.always_keep = num_layers, granularity, sorted(set(always_keep))
        free = [layer for layer in range(num_layers) if layer not in self.always_keep]
        parts = [(0, 1)] if granularity == "block" else [(0,), (1,)]
        self.units = [[(layer, sub) for sub in subs] for layer in free for subs in parts]
        if not self.units:
            raise ValueError(
                f"there is nothing to search: always_keep {self.always_keep} holds all of {num_layers} layers"
            )

    def __len__(self):
        return len(self.units)

    def layer_mask(self, bits):
        """Bits -> `layer_mask` of a configuration.

        Raises:
            ValueError: a mask that switches off everything.
        """
        mask = [[True, True] for _ in range(self.num_layers)]
        for on, unit in zip(bits, self.units, strict=True):
            for layer, sub in unit:
                mask[layer][sub] = bool(on)
        if not any(map(any, mask)):
            raise ValueError("the mask switches off everything: at least one attention or MLP must stay on")
        return mask

    def smallest(self):
        """The masks that leave the least on, as tuples of bits: what is always kept, or else one unit each."""
        if self.always_keep:
            return [(False,) * len(self)]
        return [tuple(bit == on for bit in range(len(self))) for on in range(len(self))]

    def every(self):
        """All masks that leave something on, as tuples of bits.

        Raises:
            ValueError: too many of them.
        """
        if len(self) > EXHAUSTIVE_BITS:
            raise ValueError(
                f"an exhaustive search is for at most {EXHAUSTIVE_BITS} bits, this space has {len(self)}: take nsga2"
            )
        masks = itertools.product((True, False), repeat=len(self))
        return [bits for bits in masks if any(bits) or self.always_keep]


def bit_string(bits):
    """Bits as text, "1" for what may run."""
    return "".join("1" if on else "0" for on in bits)


class Reward(NamedTuple):
    """What a policy gets for an image; `kind`, `price` and `penalty` as in `policy_gradient.terminal_reward`."""

    kind: str = "correct"
    price: float = 1.0  # cost penalty: what a cost of 1 takes from the reward
    penalty: float = 1.0
    cost_weights: str = (
        "uniform"  # or "depth": weighted shares of what each layer runs; "latency": milliseconds / dense
    )
    source: str = "default"  # where the values come from, in words


class MaskScores:
    """Scores masks on fixed images, each once, with a cache that can be saved.

    The policy acts inside the mask: what runs is what both allow, and later decisions see what the mask has changed.

    Args:
        model: a `DynViTForImageClassification`, with gates or without; its configuration is left as it was.
        space: a `MaskSpace`. batches: list of (pixel_values, labels), on the device of the model.
        reward: a `Reward`. With "uniform" weights the cost is that of the whole model.
        latencies: the `LatencyTable` of the model, or None: milliseconds are not scored. Without a policy ("open") gates
            take no time, but for their bypasses.
        file: where the cache is kept, or None; it is read if it exists.
        identity: what the scores depend on besides the mask, JSON-ready; a file of another identity is refused.
        dtype: of products, None: the model's. gating: "threshold": the policy acts; "open": all that the mask allows runs.

    Raises:
        ValueError: no images, gates that draw at random, or a file that is damaged or of another identity.
    """

    def __init__(
        self,
        model,
        space,
        batches,
        reward=None,
        latencies=None,
        file=None,
        identity=None,
        dtype=None,
        gating="threshold",
    ):
        if not batches:
            raise ValueError("there are no images to score masks on")
        if gating == "threshold" and draws_at_random(model):
            raise ValueError(
                f"beside gates that draw at random no two masks meet the same decisions: got gates {model.config.gates}; a search "
                "with --policy process leaves them out"
            )
        self.model, self.space, self.batches, self.reward = model.eval(), space, batches, reward or Reward()
        self.dtype, self.gating = dtype, gating
        self.file, self.identity = None if file is None else Path(file), json.loads(json.dumps(identity))
        self.cache, self.evaluated, self.latencies = {}, 0, latencies
        if latencies is not None:
            latencies.check(model)
        elif self.reward.cost_weights == "latency":
            raise ValueError("cost_weights 'latency' need latencies, got None")
        if self.file is not None and self.file.exists():
            self._load()

    def _load(self):
        """Take over the scores of the file."""
        try:
            stored = json.loads(self.file.read_text())
            identity, self.cache = stored["identity"], stored["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is damaged ({error!r}): remove it, or give another output") from error
        if identity != self.identity:
            raise ValueError(
                f"{self.file} holds scores of another search ({'; '.join(differences(identity, self.identity))}): give "
                "another output, or what it was made with"
            )

    def save(self):
        """Write the cache, all or nothing."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"identity": self.identity, "scores": self.cache})

    def __call__(self, bits):
        """dict of `accuracy`, `error`, `cost`, `reward`, `layers` (share left in the network), and `milliseconds`."""
        key = bit_string(bits)
        if key not in self.cache:
            self.cache[key] = self._score(self.space.layer_mask(bits))
            self.evaluated += 1
        return self.cache[key]

    @torch.no_grad()
    def _score(self, mask):
        config = self.model.config
        before, config.layer_mask = config.layer_mask, mask
        try:
            found = torch.cat([torch.stack(list(self._batch(*batch))) for batch in self.batches], 1)  # (S, images)
        finally:
            config.layer_mask = before
        accuracy, cost, reward, *milliseconds = found.mean(1).tolist()
        layers = sum(sum(pair) for pair in mask) / (2 * len(mask))
        scores = {"accuracy": accuracy, "error": 1 - accuracy, "cost": cost, "reward": reward, "layers": layers}
        return scores | ({"milliseconds": milliseconds[0]} if milliseconds else {})

    def _batch(self, pixel_values, labels):
        """Per image: right or wrong, cost, reward, and milliseconds by the table; float64 (B,)."""
        with torch.autocast(pixel_values.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            out = self.model(pixel_values, gating=self.gating)
        table, asked = self.latencies, self.gating == "threshold"
        taken = None if table is None else table.milliseconds(self.model, out, asked)
        yield outcome(out.logits, labels, "correct").double()
        yield out.cost.double()
        kind, price, penalty, weights, _ = self.reward
        spent = out.cost
        if weights == "latency":
            spent = taken / table.dense(self.model)
        elif weights == "depth":
            given = self.model.config, out.decisions, len(labels), self.model.tokens_run, out.cost.device
            shares = layer_shares(*given, self.model.gates)
            spent = (depth_weights(len(shares)).to(shares.device)[:, None] * shares).sum(0)
        yield terminal_reward(outcome(out.logits, labels, kind), spent, price, kind, penalty).double()
        if taken is not None:
            yield taken.double()


def fingerprint(*parts):
    """A short hash of tensors and strings, by content."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
            continue
        tensor = part.detach().cpu().contiguous()
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def model_fingerprint(model):
    """`fingerprint` of every weight and buffer of `model`, and of its configuration without names and versions."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_OF_MODEL}
    state = sorted(model.state_dict().items())
    return fingerprint(json.dumps(config, sort_keys=True, default=str), *itertools.chain(*state))


def differences(stored, wanted, name=""):
    """The entries in which two identities differ, in words; those within an entry that is a dict by their own names."""
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [] if stored == wanted else [f"{name} {stored!r} there, {wanted!r} now".strip()]
    keys = sorted(stored.keys() | wanted.keys())
    found = (differences(stored.get(key), wanted.get(key), f"{name}.{key}".strip(".")) for key in keys)
    return list(itertools.chain(*found))
