"""What a packed model is held against: the dense ViT in the fastest of the ways that PyTorch and this package have.

Eager, SDPA, both compiled ahead of time with weights as constants (CUDA: tuned as far as the compiler goes), and this package's
own model without gates, with prepacked weights on CPU: what our products alone are worth is no gain of skipping. Compiled, and
in ours, the last layer computes no more than the classifier reads (layer_reading.py), which saves a ViT of 12 layers 7 %.
"""

import copy
import logging

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_outputs import ImageClassifierOutput

from ..model.host_vit import ViTHost
from ..model.kernels import SERVED, load_kernels
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from .compiled import compiled as compiled_of


logger = logging.getLogger(__name__)

KERNELS = ("eager", "sdpa")
AHEAD, TUNED = "compiled ahead of time", "compile max-autotune"  # on CPU, on CUDA
AHEAD_EAGER = "compiled ahead of time, eager"
# Name -> attention: of few tokens in a batch the fused products of eager attention are faster.
PROGRAMS = {AHEAD: "sdpa", AHEAD_EAGER: "eager"}
FROZEN = "frozen compile"  # of stored results: the same program, started from Python
OURS = "ours, no gates"


def dense_calls(vit, compiled):
    """Name of a way to run `vit` -> a callable that takes images and shares its weights; compiles at its first call.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode.
        compiled: whether compiled models are among them, or those, made before of the same weights (`ahead`). A
            published number needs them.

    Returns:
        dict: `KERNELS`, `PROGRAMS` or `TUNED`, and `OURS`.
    """
    calls = {kernel: _with_attention(vit, kernel) for kernel in KERNELS}
    if compiled and vit.device.type != "cpu":
        calls[TUNED] = compiled_of(Reading(calls["sdpa"]))
    elif compiled:
        calls |= ahead(vit) if compiled is True else compiled
    calls[OURS] = without_gates(vit)
    return calls


def ahead(vit):
    """What `dense_calls` takes as `compiled`, to compile once for several of its calls: name -> program. Elsewhere than on CPU,
    where the memory that it keeps is counted with its first call, just True."""
    if vit.device.type != "cpu":
        return True
    return {name: compiled_of(Reading(_with_attention(vit, kernel))) for name, kernel in PROGRAMS.items()}


class Reading(nn.Module):
    """A `ViTForImageClassification` whose last layer computes [CLS] alone, which attends to all tokens by SDPA: the same logits."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, pixel_values):
        """pixel_values (B, channels, height, width) -> an `ImageClassifierOutput`."""
        backbone = self.vit.vit
        x = backbone.embeddings(pixel_values.to(self.vit.dtype))
        for layer in backbone.layers[:-1]:
            x = layer(x)
        parts = ViTHost().parts(backbone.layers[-1])
        h = parts.attention_norm(x)
        rows = zip(parts.projections, (h[:, :1], h, h), strict=True)
        q, k, v = (linear(some).unflatten(2, (-1, parts.head_dim)).transpose(1, 2) for linear, some in rows)
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, 1, D)
        x = x[:, :1] + parts.out(out)
        x = x + parts.mlp(parts.mlp_norm(x))
        return ImageClassifierOutput(logits=self.vit.classifier(backbone.layernorm(x)[:, 0]))


def _with_attention(vit, kernel):
    vit = twin(vit)
    vit.set_attn_implementation(kernel)
    return vit


def without_gates(vit):
    """Our model of `vit` with no gates and the same weights, prepacked on CPU; of the last layer it runs what is read."""
    return of_its_weights(vit)


def of_its_weights(vit, **given):
    """Our model that shares the weights of `vit`, prepacked on CPU; of the last layer it runs what is read.

    Args:
        given: gates, resolution, ..., as `from_vit` takes them.
    """
    model = DynViTForImageClassification.from_vit(vit, last_layer="read", **given)
    shared = twin(vit)
    model.vit, model.classifier = shared.vit, shared.classifier
    if vit.device.type == "cpu" and can_prepack():
        model.prepack()
    return model


def kernels_at_hand(dtype=torch.float32):
    """Whether the packed model in a dtype can run with compiled kernels, as a dense one may be compiled; says why not."""
    if not can_prepack() or dtype not in SERVED:
        return False
    try:
        load_kernels()
    except RuntimeError as error:
        logger.warning("timed without kernels: %s", error)
        return False
    return True


def twin(module):
    """A copy that shares the weights."""
    return copy.deepcopy(module, memo={id(weight): weight for weight in module.parameters()})
