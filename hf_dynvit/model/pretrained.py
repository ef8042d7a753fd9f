"""What all models here share with transformers: loading, fresh gates, activation checkpointing, prepacked weights."""

import torch
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_dynvit import DynViTConfig
from .gate import Score
from .prepack import prepack


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
            init.constant_(module.weight, module.init_weight)
            if module.bias is not None:
                init.constant_(module.bias, module.init_bias)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers.

        Raises:
            ValueError: gates with weights that are not finite, which would decide, but not by what they see.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        gates = [(name, weight) for name, weight in model.gates.named_parameters() if not weight.is_meta]
        broken = [f"gates.{name}" for name, weight in gates if not weight.isfinite().all()]
        if broken:
            raise ValueError(
                f"{len(broken)} weights of gates hold numbers that are not finite, {broken[0]} first: the checkpoint is "
                "damaged or its training diverged"
            )
        return loaded

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

        The result is the same and faster, most in float32, at the price of these weights' memory once more. The
        copies are for evaluation without gradient alone: they are dropped when the model trains, moves or computes with
        gradient, and renewed when weights change; after changing single elements of `weight.data`, call it again.
        Compiled and exported graphs hold the plain products.

        Raises:
            ValueError: a model that is not on CPU, or a torch without oneDNN.
        """
        prepack(self.vit.layers)
        return self
