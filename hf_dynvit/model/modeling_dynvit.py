"""A Vision Transformer that spends computation per image: a native backbone, and gates that decide what it runs.

Letters: B images, N tokens ([CLS] first), D channels, H heads, L layers, C classes.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .budgets import Dial
from .bypass import Bypass
from .cascade import check_single_label, in_looks
from .configuration_dynvit import DynViTConfig
from .convert import dynvit_config, load_vit
from .encoder import encode
from .gate import LearnedGate, Score
from .gates import build_gates, check_names
from .host import host_of
from .host_vit import ViTHost
from .kernels import load_kernels
from .layer import LAYOUTS
from .layer_reading import reads_alone
from .outputs import DynViTClassifierOutput, DynViTModelOutput
from .prepack import prepack
from .resolution import tokens_run


class DynViTPreTrainedModel(PreTrainedModel):
    config: DynViTConfig
    config_class = DynViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the gates' losses are means: the Trainer must divide by the accumulation steps
    _no_split_modules = list(ViTHost.no_split)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Score):  # open: nothing is skipped before the gates have learned to
            init.copy_(module.weight, module.fresh())
            if module.bias is not None:
                init.constant_(module.bias, module.init_bias)
        if isinstance(module, Bypass):
            for parameter in module.parameters(recurse=False):
                init.zeros_(parameter)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, and a ValueError for gates with weights that are not finite: they would decide blindly.

        Fields of the configuration that are given as keywords are checked as those of a file are.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        type(model.config)(
            **model.config.to_dict()
        )  # keywords are set on a configuration that was checked without them
        gates = [(name, weight) for name, weight in model.gates.named_parameters() if not weight.is_meta]
        broken = [f"gates.{name}" for name, weight in gates if not weight.isfinite().all()]
        if broken:
            raise ValueError(
                f"{len(broken)} weights of gates hold numbers that are not finite, {broken[0]} first: the checkpoint is "
                "damaged or its training diverged"
            )
        return loaded

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **options):
        """As in transformers, without `use_reentrant=True`, which would lose the gradients that reach gates by the cost."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("activation checkpointing needs use_reentrant=False: decisions carry gradients too")
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **options)


class DynViTModel(Dial, DynViTPreTrainedModel):
    """A native backbone without pooler, and gates on its layers; gives features."""

    def __init__(self, config):
        check_names(config.gates)  # before a body is built that may be large
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.host.build(config))
        self.gates = build_gates(config)
        self._layout = None
        self.post_init()

    @property
    def host(self):
        """The `Host` that knows the backbone by name."""
        return host_of(self.config)

    @property
    def num_tokens(self):
        """Tokens of an image of the configured size, [CLS] included."""
        return self.host.sizes(self.config).tokens

    @property
    def tokens_run(self):
        """Tokens that enter the first layer: fewer than `num_tokens` where images are resized."""
        return tokens_run(self.config)

    @property
    def layout(self):
        """`"packed"` or `"masked"`; unless set, packed in evaluation and masked in training, under a compiler and in a trace, which
        would make one image's decisions those of all."""
        if self._layout is not None:
            return self._layout
        fixed = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return "masked" if self.training or fixed else "packed"

    @layout.setter
    def layout(self, value):
        if value is not None and value not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS} or None, got {value!r}")
        self._layout = value

    def learned_gates(self):
        """The `LearnedGate`s, those of the first layer first."""
        return [gate for gates in self.gates for gate in gates.values() if isinstance(gate, LearnedGate)]

    def prepack(self, kernels=False):
        """For inference on CPU: keep the layers' weights also in the order that its products want. Returns the model.

        Results are the same and come faster, most in float32, at the price of these weights' memory once more. The copies
        follow the weights (prepack.py); after changing single elements of `weight.data`, call it again. Compiled and
        exported graphs hold the plain products.

        Args:
            kernels: also compile what merging and dropping do beside products (kernels.py), once on a machine, in about a
                minute; they then serve all models of the process.

        Raises:
            ValueError: a model that is not on CPU, or a torch without oneDNN.
            RuntimeError: kernels, without a C++ compiler or ninja.
        """
        if kernels:
            load_kernels()
        prepack(self.host.layers(self.base_model))
        return self

    @can_return_tuple
    def forward(self, pixel_values=None, **options):
        """A `DynViTModelOutput` of images (B, channels, height, width), or a tuple with `return_dict=False`.

        Args:
            options: those of `encode` (encoder.py): decisions, gating, exploration, budget, look, interpolate_pos_encoding,
                output_attentions, output_hidden_states, patches, merge_patches.
        """
        x, *rest, _ = encode(self, pixel_values, **options)
        return DynViTModelOutput(self.host.norm(self.base_model, x), *rest)


class DynViTForImageClassification(DynViTModel):
    """A native image classifier with gates: the same weights under the same names, and those of the gates."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels, features = config.num_labels, self.host.sizes(config).features
        self.classifier = nn.Linear(features, config.num_labels) if config.num_labels > 0 else nn.Identity()
        reads_alone(self)  # refuses what cannot be left out
        self.post_init()

    @classmethod
    def from_vit(cls, source, gates=None, budget=1.0, resolution=None, cascade=None, last_layer=None, **kwargs):
        """Put gates on a trained ViT; fresh learned gates are open, so the logits stay the ViT's.

        Args:
            source: a `ViTForImageClassification`, or a folder or Hub id of one (or of a bare `ViTModel`).
            gates: the name of a preset, a list of gate dicts as in `DynViTConfig`, or None for none.
            budget: mean cost to aim at, in (0, 1].
            resolution: height and width that images are resized to inside the model, as in `DynViTConfig`.
            cascade: several looks in place of one, as in `DynViTConfig`.
            last_layer: `"read"` leaves out of the last layer what the classifier does not read, as in `DynViTConfig`.
            kwargs: those of `ViTForImageClassification.from_pretrained` (num_labels, dtype, revision, ...). The model is
                where the ViT is; if its `device_map` names several devices, on the first.

        Raises:
            ValueError: a source that is not a ViT, lacks weights or has some on disk, an unknown preset, gate or option.
        """
        vit = load_vit(source, cls.config_class, **kwargs)
        own = resolution, cascade, last_layer
        model = cls(dynvit_config(vit.config, gates, budget, cls.config_class, *own)).to(vit.device, vit.dtype)
        model.load_state_dict({**model.state_dict(), **vit.state_dict()})
        model.set_attn_implementation(vit.config._attn_implementation)
        return model.eval()

    @can_return_tuple
    def forward(self, pixel_values=None, labels=None, **options):
        """A `DynViTClassifierOutput`; arguments as in `DynViTModel.forward`.

        Args:
            labels: (B,) class indices, or (B, C) floats for multi-label problems; adds the loss.
            options: without a `look`, a model with a cascade takes as many as each image needs, and in training the last.
        """
        if self.config.cascade is not None:
            check_single_label(labels)
        several = self.config.cascade is not None and options.get("look") is None and not self.training
        if several and pixel_values is not None:
            logits, cost, looks = in_looks(self, pixel_values, **options)
            rest = cost, None, None, None, looks
        else:
            x, *rest, state = encode(self, pixel_values, **options)
            logits = self.classifier(self.host.head(self.base_model, x, state.alive, state.size))  # (B, C)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return DynViTClassifierOutput(loss, logits, *rest)


# Saving a model also saves its code.
DynViTModel.register_for_auto_class("AutoModel")
DynViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["DynViTForImageClassification", "DynViTModel", "DynViTPreTrainedModel"]
