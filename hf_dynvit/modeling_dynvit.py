"""A Vision Transformer that spends computation per image: a native `ViTModel`, and gates that decide what it runs.

Letters: B images, N tokens ([CLS] first), D channels, L layers, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, ViTModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .compact import compact, in_full
from .configuration_dynvit import DynViTConfig
from .convert import dynvit_config, load_vit
from .cost import cost
from .embed import embed, take_patches
from .execute import LAYOUTS, NO_EXPLORATION, NOTHING_DROPPED, run_layer
from .gate import GATINGS, Score
from .gates import build_gates
from .prepack import prepack
from .upfront import decide_ahead, read_entry


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


class DynViTPreTrainedModel(PreTrainedModel):
    config: DynViTConfig
    config_class = DynViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the gates' losses are means: the Trainer must divide by the accumulation steps
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Score):  # open: nothing is skipped before the gates have learned to
            init.zeros_(module.weight)
            init.constant_(module.bias, module.init_bias)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **options):
        """Recompute layers in the backward pass; as in transformers, without the reentrant variant.

        Raises:
            ValueError: `use_reentrant=True`, which would lose the gradients that reach gates through the cost.
        """
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("activation checkpointing needs use_reentrant=False: decisions carry gradients too")
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def prepack(self):
        """For inference on CPU: keep the layers' weights also in the order that its products want. Returns the model.

        The result is the same and faster, most in float32, at the price of these weights' memory once more. Training
        goes on to work, and changed weights are seen; after changing `weight.data` directly, call it again.

        Raises:
            ValueError: a model that is not on CPU, or a torch without oneDNN.
        """
        prepack(self.vit.layers)
        return self


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

    def encode(
        self,
        pixel_values,
        decisions=None,
        gating=None,
        exploration=NO_EXPLORATION,
        interpolate_pos_encoding=None,
        output_attentions=None,
        output_hidden_states=None,
        patches=None,
    ):
        """Run embeddings and layers; the arguments are those of `forward`.

        Returns:
            x (B, N, D) before the final LayerNorm, cost (B,), decisions, hidden_states, attentions.

        Raises:
            ValueError: patches that are not int64 indices for this batch.
            IndexError: on CPU, indices of patches that do not exist.
        """
        gating = gating or ("sample" if self.training else "threshold")
        self._check(pixel_values, decisions, gating)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layout = self.layout
        if output_attentions:
            if self.config._attn_implementation != "eager":
                raise ValueError(
                    "output_attentions needs eager attention, not "
                    f'{self.config._attn_implementation!r}: call model.set_attn_implementation("eager")'
                )
            layout = "masked"  # the packed layout has no (N, N) matrix; the meaning is the same
        x = embed(self.vit.embeddings, pixel_values, bool(interpolate_pos_encoding))
        full_tokens = x.shape[1]
        if patches is not None:
            x = take_patches(x, patches)
        num_tokens, compacts = x.shape[1], layout == "packed" and decisions is None and self._compacts(wants_hidden)
        plans = layout == "packed" and decisions is None and gating in ("threshold", "act")
        state, used, attentions, hidden = NOTHING_DROPPED, [], [], [self._snapshot(x, 0, wants_hidden)]
        for index, (layer, gates) in enumerate(zip(self.vit.layers, self.gates, strict=True)):
            replay = decisions[index] if decisions is not None else None
            how = "open" if gating == "act" and index < exploration.from_layer else gating
            if replay is not None or any(self._allowed(index)):
                state = read_entry(state, gates, x)
            if plans and state.entry is not None and state.ahead is None:
                state = decide_ahead(state, self._ahead(index, gating, exploration), gating, exploration)
            before = state
            options = (layer, gates, x, how, layout, replay, exploration, state, self._allowed(index))
            if layer.gradient_checkpointing and self.training:
                # Gates sample from the global generator, which checkpointing restores for the second forward.
                x, decision, state, weights = layer._gradient_checkpointing_func(run_layer, *options)
            else:
                x, decision, state, weights = run_layer(*options)
            if compacts:
                decision = in_full(decision, before, num_tokens)
                if state.alive is not before.alive:
                    x, state = compact(x, state, num_tokens)
            used.append(decision)
            attentions.append(weights)
            hidden.append(self._snapshot(x, index + 1, wants_hidden))
        spent = self._cost(used, x, num_tokens, full_tokens, gating)
        hidden = tuple(hidden) if wants_hidden else None
        attentions = tuple(attentions) if output_attentions else None
        return x, spent, tuple(used), hidden, attentions

    def _allowed(self, index):
        mask = self.config.layer_mask
        return (True, True) if mask is None else tuple(mask[index])

    def _ahead(self, index, gating, exploration):
        """The gates, from a layer on, that decide up front all that the host must know of their layer."""
        first = max(index, exploration.from_layer) if gating == "act" else index
        return [
            gates["sublayers"]
            for layer, gates in enumerate(self.gates)
            if layer >= first and all(self._allowed(layer)) and set(gates) == {"sublayers"}
            if gates["sublayers"].upfront and gates["sublayers"].whole
        ]

    def _snapshot(self, x, index, wanted):
        """The token stream as it is now, if hidden state `index` is wanted: all are (`True`), or the list has it."""
        if not wanted or (wanted is not True and index not in {i % (len(self.vit.layers) + 1) for i in wanted}):
            return None
        return x if torch.is_grad_enabled() else x.clone()  # without gradients the packed layout updates in place

    def _compacts(self, wants_hidden):
        """Whether dropped tokens may leave the stream: nobody reads them any more."""
        reads_all = any(gate.reads_all for layer in self.gates for gate in layer.values())
        return not (reads_all or wants_hidden or torch.is_grad_enabled()) and hasattr(self, "classifier")

    def _cost(self, decisions, x, num_tokens, full_tokens, gating):
        batch = x.shape[0]
        gate_macs = 0
        if gating != "open":
            gate_macs = sum(
                gate.macs(num_tokens)
                for index, layer in enumerate(self.gates)
                for gate in layer.values()
                if any(self._allowed(index))
            )
        classes = getattr(self, "num_labels", 0) if hasattr(self, "classifier") else 0
        return cost(self.config, decisions, batch, num_tokens, classes, gate_macs, x.device, full_tokens)

    def _check(self, pixel_values, decisions, gating):
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        if gating not in GATINGS:
            raise ValueError(f"gating must be one of {GATINGS}, got {gating!r}")
        if decisions is not None and len(decisions) != len(self.vit.layers):
            raise ValueError(f"decisions must have one entry per layer ({len(self.vit.layers)}), got {len(decisions)}")

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

        Returns:
            `DynViTModelOutput`, or a tuple with `return_dict=False`.
        """
        x, spent, used, hidden, attentions = self.encode(
            pixel_values,
            decisions,
            gating,
            exploration,
            interpolate_pos_encoding,
            output_attentions,
            output_hidden_states,
            patches,
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
            kwargs: given on to `ViTForImageClassification.from_pretrained` (num_labels, dtype, revision, ...).

        Raises:
            ValueError: a source that is not a ViT or lacks weights, an unknown preset, gate or option.
        """
        vit = load_vit(source, **kwargs)
        model = cls(dynvit_config(vit.config, gates, budget)).to(vit.dtype)
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
    ):
        """Logits of images; arguments as in `DynViTModel.forward`.

        Args:
            labels: (B,) class indices, or (B, C) floats for multi-label problems; adds the loss.

        Returns:
            `DynViTClassifierOutput`, or a tuple with `return_dict=False`.
        """
        x, spent, used, hidden, attentions = self.encode(
            pixel_values,
            decisions,
            gating,
            exploration,
            interpolate_pos_encoding,
            output_attentions,
            output_hidden_states,
            patches,
        )
        logits = self.classifier(self.vit.layernorm(x[:, 0]))  # (B, C)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return DynViTClassifierOutput(loss, logits, spent, used, hidden, attentions)


# Saving a model also saves its code.
DynViTModel.register_for_auto_class("AutoModel")
DynViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["DynViTForImageClassification", "DynViTModel", "DynViTPreTrainedModel"]
