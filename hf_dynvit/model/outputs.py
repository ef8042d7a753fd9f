"""What the models give: logits or features, and with them what was decided and what it cost.

Letters: B images, N tokens, D channels, H heads, L layers, C classes.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


class OutputWithDecisions(ModelOutput):
    """An output one of whose fields, `decisions`, has an entry per layer, where the others have one per image.

    transformers' pipelines take a batch apart: they walk over `items()` and index each value by image, but leave out
    an output within an output that holds no tensors of its own. So `items()` has the decisions in such a one, as
    `ModelOutput(layers=decisions)`. The attribute, the key, the position in the tuple and `values()` give the
    decisions as they are, and so does an output rebuilt from items (accelerate, copies, pickle).
    """

    def items(self):
        items = OrderedDict(super().items())
        if items.get("decisions") is not None:
            items["decisions"] = ModelOutput(layers=items["decisions"])
        return items.items()

    def __getitem__(self, key):
        return OrderedDict.__getitem__(self, key) if isinstance(key, str) else super().__getitem__(key)

    def __setitem__(self, key, value):
        super().__setitem__(key, value["layers"] if isinstance(value, ModelOutput) else value)


@dataclass
class DynViTModelOutput(OutputWithDecisions):
    """Features of a `DynViTModel`.

    Attributes:
        last_hidden_state: (B, N, D), after the final norm.
        cost: (B,) multiply-accumulates spent / those of the dense model.
        decisions: L `LayerDecisions`, what each layer ran.
        hidden_states: L + 1 tensors (B, N, D), on request.
        attentions: L tensors (B, H, N, N), on request.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cost: torch.FloatTensor | None = None
    decisions: tuple | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


@dataclass
class DynViTClassifierOutput(OutputWithDecisions):
    """Logits (B, C) of a `DynViTForImageClassification`, the loss if labels were given, and the rest as in
    `DynViTModelOutput`; of a cascade also `looks` (B,), how many an image has taken, but then no decisions of any."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cost: torch.FloatTensor | None = None
    decisions: tuple | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    looks: torch.LongTensor | None = None
