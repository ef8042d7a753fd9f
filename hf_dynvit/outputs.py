"""What the models give: the outputs of transformers, and what each image cost and ran.

Letters: B images, N tokens ([CLS] first), D channels, H heads, L layers, C classes.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class DynViTModelOutput(ModelOutput):
    """Features of a `DynViTModel`.

    Attributes:
        last_hidden_state: (B, N, D), after the final LayerNorm.
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
class DynViTClassifierOutput(ModelOutput):
    """Logits (B, C) of a `DynViTForImageClassification`, the loss if labels were given, and the rest as in
    `DynViTModelOutput`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cost: torch.FloatTensor | None = None
    decisions: tuple | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
