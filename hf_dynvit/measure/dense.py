"""What a packed model is held against: the dense ViT in the fastest of the ways that PyTorch and this package have.

Eager, SDPA, compiled with frozen weights (CUDA: tuned as far as the compiler goes), and this package's own model without
gates, with prepacked weights on CPU: what our products alone are worth is no gain of skipping.
"""

import copy
import logging

import torch

from ..model.kernels import SERVED, load_kernels
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack


logger = logging.getLogger(__name__)

KERNELS = ("eager", "sdpa")
FROZEN, TUNED = "frozen compile", "compile max-autotune"  # on CPU, on CUDA
OURS = "ours, no gates"
GRAPHS = 64  # models of one class that may be compiled beside each other; torch gives up silently after 8


def dense_calls(vit, compiled):
    """Name of a way to run `vit` -> a callable that takes images and shares its weights; compiles at its first call.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode.
        compiled: whether the compiled model is among them. A published number needs it.

    Returns:
        dict: `KERNELS`, `FROZEN` or `TUNED`, and `OURS`.
    """
    calls = {}
    for kernel in KERNELS:
        calls[kernel] = twin(vit)
        calls[kernel].set_attn_implementation(kernel)
    if compiled:
        calls[TUNED if vit.device.type == "cuda" else FROZEN] = Compiled(calls["sdpa"])
    calls[OURS] = without_gates(vit)
    return calls


def without_gates(vit):
    """Our model of `vit` with no gates and the same weights, prepacked on CPU."""
    model = DynViTForImageClassification.from_vit(vit)
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


class Compiled:
    """A dense model compiled once for each shape of images; on CPU its weights become constants of the program.

    torch freezes where the setting is on and no gradient is recorded *while it compiles*: the setting is on for that time
    alone, so that nothing else freezes.
    """

    def __init__(self, vit):
        self.frozen = vit.device.type != "cuda"
        self.model = torch.compile(vit, dynamic=False, mode=None if self.frozen else "max-autotune")
        self.shapes = set()

    def __call__(self, images):
        if images.shape in self.shapes:
            return self.model(images)
        if torch.is_grad_enabled():
            raise RuntimeError("weights are frozen only where no gradient is recorded: call it in torch.no_grad()")
        with torch._inductor.config.patch(freezing=self.frozen), torch._dynamo.config.patch(recompile_limit=GRAPHS):
            out = self.model(images)
        self.shapes.add(images.shape)
        return out
