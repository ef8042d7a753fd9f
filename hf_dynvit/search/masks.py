"""Static masks: the space of them, as strings of bits, and what a model is worth under each."""

import hashlib
import itertools
import json
from pathlib import Path

import torch

from ..model.cost import layer_shares
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


class MaskScores:
    """Scores masks on fixed images, with a cache that can be saved.

    The policy acts inside the mask: what runs is what both allow, and later decisions see what the mask has changed.

    Args:
        model: a `DynViTForImageClassification`, with gates or without; its configuration is left as it was.
        space: a `MaskSpace`.
        batches: list of (pixel_values, labels), on the device of the model.
        price: of cost, in the reward.
        latencies: (L,) share of each layer in the measured time, or a function that measures them, or None: latency is
            not scored. Those of the file, if it exists, are taken instead: one search has one measurement.
        file: where the cache is kept, or None. It is read if it exists.
        identity: what the scores depend on besides the mask, JSON-ready; a file of another identity is refused.
        autocast: dtype of products, or None.
        gating: `"threshold"`: the policy acts; `"open"`: everything that the mask allows runs.
        reward, penalty: as in `reinforce.terminal_reward`.
        cost_weights: of the reward's cost: `"uniform"`: the cost of the whole model; `"depth"` or `"latency"`: weighted
            shares of what each layer runs, as in training.

    Raises:
        ValueError: no images, or a file that is damaged or of another identity.
    """

    def __init__(
        self,
        model,
        space,
        batches,
        price=1.0,
        latencies=None,
        file=None,
        identity=None,
        autocast=None,
        gating="threshold",
        reward="correct",
        penalty=1.0,
        cost_weights="uniform",
    ):
        if not batches:
            raise ValueError("there are no images to score masks on")
        self.model, self.space, self.batches = model.eval(), space, batches
        self.reward, self.price, self.penalty = reward, price, penalty
        self.autocast, self.gating = autocast, gating
        self.file, self.identity = None if file is None else Path(file), json.loads(json.dumps(identity))
        self.cache, self.evaluated = {}, 0
        measured = self._load() if self.file is not None and self.file.exists() else None
        if latencies is not None and measured is not None:
            latencies = torch.tensor(measured)
        self.latencies = latencies() if callable(latencies) else latencies
        if cost_weights == "latency" and self.latencies is None:
            raise ValueError("cost_weights 'latency' need latencies, got None")
        known = {"uniform": None, "depth": depth_weights(space.num_layers), "latency": self.latencies}
        self.cost_weights = known[cost_weights]

    def _load(self):
        """Take over the scores of the file; returns the latencies that they were made with, or None."""
        try:
            stored = json.loads(self.file.read_text())
            identity, scores = stored["identity"], stored["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is damaged ({error!r}): remove it, or give another output") from error
        if identity != self.identity:
            raise ValueError(
                f"{self.file} holds scores of another search ({'; '.join(differences(identity, self.identity))}): give "
                "another output, or what it was made with"
            )
        self.cache = scores
        return stored.get("latencies")

    def __call__(self, bits):
        """dict of `accuracy`, `error`, `cost`, `reward`, `layers` (share left in the network), and `latency`."""
        key = bit_string(bits)
        if key not in self.cache:
            self.cache[key] = self._score(self.space.layer_mask(bits))
            self.evaluated += 1
        return self.cache[key]

    def save(self):
        """Write the cache, all or nothing."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".partial")
        content = {"identity": self.identity, "scores": self.cache}
        if self.latencies is not None:
            content["latencies"] = self.latencies.tolist()
        draft.write_text(json.dumps(content, indent=1))
        draft.replace(self.file)

    @torch.no_grad()
    def _score(self, mask):
        config = self.model.config
        before, config.layer_mask = config.layer_mask, mask
        try:
            sums, images = None, 0
            for pixel_values, labels in self.batches:
                found = torch.stack([value.double() for value in self._batch(pixel_values, labels)])  # (S, B)
                sums = found.sum(1) if sums is None else sums + found.sum(1)
                images += len(labels)
        finally:
            config.layer_mask = before
        accuracy, cost, reward, *latency = (sums / images).tolist()
        layers = sum(sum(pair) for pair in mask) / (2 * len(mask))
        scores = {"accuracy": accuracy, "error": 1 - accuracy, "cost": cost, "reward": reward, "layers": layers}
        return scores | ({"latency": latency[0]} if latency else {})

    def _batch(self, pixel_values, labels):
        """Per image: right or wrong, cost, reward, and expected share of the dense model's measured time."""
        device = pixel_values.device
        with torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            out = self.model(pixel_values, gating=self.gating)
        yield outcome(out.logits, labels, "correct")
        yield out.cost
        num_tokens = self.model.vit.embeddings.position_embeddings.shape[1]
        shares = None
        if self.latencies is not None or self.cost_weights is not None:
            shares = layer_shares(self.model.config, out.decisions, len(labels), num_tokens, device)  # (L, B)
        spent = out.cost if self.cost_weights is None else (self.cost_weights.to(device)[:, None] * shares).sum(0)
        earned = outcome(out.logits, labels, self.reward)
        yield terminal_reward(earned, spent, self.price, self.reward, self.penalty)
        if self.latencies is not None:
            yield (self.latencies.to(device)[:, None] * shares).sum(0)


def model_fingerprint(model):
    """A hash of every weight and buffer of `model`, and of its configuration without names and versions."""
    found = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_OF_MODEL}
    found.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        _add(found, tensor)
    return found.hexdigest()[:16]


def images_fingerprint(batches):
    """A hash of the pixels and labels of a list of (pixel_values, labels), as the model sees them."""
    found = hashlib.sha256()
    for pixel_values, labels in batches:
        _add(found, pixel_values)
        _add(found, labels)
    return found.hexdigest()[:16]


def differences(stored, wanted):
    """The entries in which two identities differ, in words; those within an entry that is a dict by their own names."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return [f"{stored!r} there, {wanted!r} now"]
    words = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            words += [f"{name}.{text}" for text in differences(there, here)]
        elif there != here:
            words.append(f"{name} {there!r} there, {here!r} now")
    return words


def _add(found, tensor):
    tensor = tensor.detach().cpu().contiguous()
    found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    found.update(tensor.flatten().view(torch.uint8).numpy())
