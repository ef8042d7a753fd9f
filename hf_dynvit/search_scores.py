"""What a mask is worth: error, cost, latency and reward of a model under it, computed once per mask."""

import json
from pathlib import Path

import torch

from .cost import layer_shares
from .reinforce import outcome, terminal_reward


class MaskScores:
    """Scores masks on fixed images, with a cache that can be saved.

    The policy acts inside the mask: what runs is what both allow, and later decisions see what the mask has changed.

    Args:
        model: a `DynViTForImageClassification`, with gates or without; its configuration is left as it was.
        space: a `MaskSpace`.
        batches: list of (pixel_values, labels), on the device of the model.
        price: of cost, in the reward.
        latencies: (L,) share of each layer in the measured time, or None: latency is not scored.
        file: where the cache is kept, or None. It is read if it exists.
        identity: what the scores depend on besides the mask; a file of another identity is refused.
        autocast: dtype of products, or None.
        gating: `"threshold"`: the policy acts; `"open"`: everything that the mask allows runs.
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
    ):
        if not batches:
            raise ValueError("there are no images to score masks on")
        self.model, self.space, self.batches, self.price = model.eval(), space, batches, price
        self.latencies, self.autocast, self.gating = latencies, autocast, gating
        self.file, self.identity = None if file is None else Path(file), identity
        self.cache, self.evaluated = {}, 0
        if self.file is not None and self.file.exists():
            stored = json.loads(self.file.read_text())
            if stored["identity"] != identity:
                raise ValueError(
                    f"{self.file} holds scores of another search ({stored['identity']}), not of {identity}: give "
                    "another output, or the same settings"
                )
            self.cache = stored["scores"]

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
        draft.write_text(json.dumps({"identity": self.identity, "scores": self.cache}, indent=1))
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
        correct = outcome(out.logits, labels, "correct")
        yield correct
        yield out.cost
        yield terminal_reward(correct, out.cost, self.price)
        if self.latencies is not None:
            config = self.model.config
            num_tokens = self.model.vit.embeddings.position_embeddings.shape[1]
            shares = layer_shares(config, out.decisions, len(labels), num_tokens, device)
            yield (self.latencies.to(device)[:, None] * shares).sum(0)
