"""A Vision Transformer that spends computation per image: a native `ViTModel`, and gates that decide what it runs.

Letters: B images, N tokens ([CLS] first), D channels, L layers, C classes.
"""

import torch
from torch import nn
from transformers import ViTModel
from transformers.utils.generic import can_return_tuple

from .convert import dynvit_config, load_vit
from .encoder import encode
from .gates import build_gates
from .layer import LAYOUTS, NO_EXPLORATION
from .outputs import DynViTClassifierOutput, DynViTModelOutput
from .pretrained import DynViTPreTrainedModel


class DynViTModel(DynViTPreTrainedModel):
    """A native `ViTModel` without pooler, and gates on its layers; gives features."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.gates = build_gates(config)
        self._layout = None
        self.post_init()

    @property
    def layout(self):
        """`"packed"` or `"masked"`; unless set, packed in evaluation and masked in training and under a compiler."""
        if self._layout is not None:
            return self._layout
        return "masked" if self.training or torch.compiler.is_compiling() else "packed"

    @layout.setter
    def layout(self, value):
        if value is not None and value not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS} or None, got {value!r}")
        self._layout = value

    @can_return_tuple
    def forward(
        self,
        pixel_values=None,
        decisions=None,
        gating=None,
        exploration=NO_EXPLORATION,
        interpolate_pos_encoding=None,
        output_attentions=None,
        output_hidden_states=None,
        patches=None,
        merge_patches=False,
    ):
        """Features of images.

        Args:
            pixel_values: (B, channels, height, width).
            decisions: L `LayerDecisions` to replay instead of the gates' own.
            gating: how gates decide, one of `GATINGS`; sample in training, else threshold.
            exploration: how stochastic decisions are drawn.
            interpolate_pos_encoding: accept another image size than the configured one.
            output_attentions: needs eager attention, and runs the masked layout.
            output_hidden_states: collect the token stream before and after each layer; a list of indices collects
                those alone (None stands for the others).
            patches: int64 indices of the patches to run on, counted from 0 without [CLS], each at most once: (K,) for
                all images or (B, K) for each. The others are gone before the first layer, the token stream has
                N = 1 + K tokens, and the cost stays relative to the dense model on all patches.
            merge_patches: the others leave their content to the kept patch most like them, which then counts as often
                as it has patches (eager or sdpa attention in the masked layout); without patches it says nothing.

        Returns:
            `DynViTModelOutput`, or a tuple with `return_dict=False`.
        """
        x, spent, used, hidden, attentions = encode(
            self,
            pixel_values,
            decisions,
            gating,
            exploration,
            interpolate_pos_encoding,
            output_attentions,
            output_hidden_states,
            patches,
            merge_patches,
        )
        return DynViTModelOutput(self.vit.layernorm(x), spent, used, hidden, attentions)


class DynViTForImageClassification(DynViTModel):
    """A `ViTForImageClassification` with gates: the same weights under the same names, and those of the gates."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @classmethod
    def from_vit(cls, source, gates=None, budget=1.0, **kwargs):
        """Put gates on a trained ViT; fresh learned gates are open, so the logits stay the ViT's.

        Args:
            source: a `ViTForImageClassification`, or a folder or Hub id of one (or of a bare `ViTModel`).
            gates: the name of a preset, a list of gate dicts as in `DynViTConfig`, or None for none.
            budget: mean cost to aim at, in (0, 1].
            kwargs: given on to `ViTForImageClassification.from_pretrained` (num_labels, dtype, revision, ...). The
                model is on the device that the ViT is on, with its `device_map`; if that names several, on the first.

        Raises:
            ValueError: a source that is not a ViT, lacks weights or has some on disk, an unknown preset, gate or option.
        """
        vit = load_vit(source, **kwargs)
        model = cls(dynvit_config(vit.config, gates, budget)).to(vit.device, vit.dtype)
        model.load_state_dict({**model.state_dict(), **vit.state_dict()})
        model.set_attn_implementation(vit.config._attn_implementation)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        pixel_values=None,
        labels=None,
        decisions=None,
        gating=None,
        exploration=NO_EXPLORATION,
        interpolate_pos_encoding=None,
        output_attentions=None,
        output_hidden_states=None,
        patches=None,
        merge_patches=False,
    ):
        """Logits of images; arguments as in `DynViTModel.forward`.

        Args:
            labels: (B,) class indices, or (B, C) floats for multi-label problems; adds the loss.

        Returns:
            `DynViTClassifierOutput`, or a tuple with `return_dict=False`.
        """
        x, spent, used, hidden, attentions = encode(
            self,
            pixel_values,
            decisions,
            gating,
            exploration,
            interpolate_pos_encoding,
            output_attentions,
            output_hidden_states,
            patches,
            merge_patches,
        )
        logits = self.classifier(self.vit.layernorm(x[:, 0]))  # (B, C)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return DynViTClassifierOutput(loss, logits, spent, used, hidden, attentions)


# Saving a model also saves its code.
DynViTModel.register_for_auto_class("AutoModel")
DynViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["DynViTForImageClassification", "DynViTModel", "DynViTPreTrainedModel"]
