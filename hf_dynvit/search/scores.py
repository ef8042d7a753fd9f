"""What a mask is worth: error, cost, latency and reward of a model under it, computed once per mask."""

import json
from pathlib import Path

import torch

from ..model.cost import layer_shares
from ..objectives.policy_gradient import depth_weights, outcome, terminal_reward
from .identity import differences


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
        reward, penalty: as in `policy_gradient.terminal_reward`.
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
        key = "".join("1" if on else "0" for on in bits)
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
        num_tokens = self.model.num_tokens
        shares = None
        if self.latencies is not None or self.cost_weights is not None:
            shares = layer_shares(self.model.config, out.decisions, len(labels), num_tokens, device)  # (L, B)
        spent = out.cost if self.cost_weights is None else (self.cost_weights.to(device)[:, None] * shares).sum(0)
        earned = outcome(out.logits, labels, self.reward)
        yield terminal_reward(earned, spent, self.price, self.reward, self.penalty)
        if self.latencies is not None:
            yield (self.latencies.to(device)[:, None] * shares).sum(0)
