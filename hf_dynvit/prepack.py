"""Inference on CPU with weights in the order that oneDNN's products want, reordered once instead of in every call.

torch.compile does the same for models that it may freeze; this needs no compiler and serves any number of rows.
"""

from functools import cache

import torch
from torch import nn


PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
WORTH = 2**20  # multiply-accumulates; the call itself costs more than the plain one, which pays from about here on


class PrepackedLinear(nn.Linear):
    """An `nn.Linear` that keeps a reordered copy of its weight for forwards on CPU without gradient.

    The copy is renewed when the weight is exchanged or changed in place; a change behind autograd's back
    (`weight.data`) goes unnoticed until `prepack` is called again.
    """

    _kept = None  # number of joined layers -> (what their parameters were, reordered weight, bias)

    def forward(self, x, activation="none"):
        """x (..., in) -> (..., out); activation: "none" or "gelu" (the exact one), of the output."""
        if not self.serves(x):
            out = super().forward(x)
            return nn.functional.gelu(out) if activation == "gelu" else out
        return PRODUCT(x, *self._reordered(self), activation, [], "none")

    def joint(self, others, x):
        """x (..., in) through this layer and others in one product: (..., sum of outs); only where it `serves`."""
        return PRODUCT(x, *self._reordered(self, *others), "none", [], "none")

    def serves(self, x):
        """Whether the reordered weight can be used for x."""
        weight = self._parameters["weight"]  # at one image Module.__getattr__ would cost what the product does
        return (
            not torch.is_grad_enabled()
            and x.dtype == weight.dtype
            and _has_products(x.dtype)
            and x.numel() * weight.shape[0] >= WORTH
            and x.device.type == weight.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )

    def _reordered(self, *linears):
        parameters = [p for linear in linears for p in linear._parameters.values() if p is not None]
        now = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        kept = self._kept.get(len(linears))
        if kept is None or kept[0] != now:
            with torch.no_grad():
                weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else self.weight
                bias = None if self.bias is None else torch.cat([linear.bias for linear in linears])
                kept = self._kept[len(linears)] = now, torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias
        return kept[1:]

    def __getstate__(self):
        return self.__dict__ | {"_kept": {}}


@cache
def _has_products(dtype):
    """Whether oneDNN computes in `dtype` on this CPU; not all CPUs have 16-bit products."""
    if dtype == torch.float32:
        return True
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    supported = name and getattr(torch.ops.mkldnn, name, None)
    return bool(supported and supported())


def prepack(module):
    """Turn the plain linear layers in `module` into prepacked ones, in place; parameters and their names stay.

    Takes as much memory as the weights of these layers again, at their first forwards.

    Raises:
        ValueError: a module that is not on CPU, or a torch without oneDNN.
    """
    devices = {parameter.device.type for parameter in module.parameters()}
    if devices != {"cpu"}:
        raise ValueError(f"prepacked weights are for models on CPU, this one is on {sorted(devices)}")
    if not can_prepack():
        raise ValueError(
            "prepacked weights need a torch with oneDNN, and torch.backends.mkldnn.is_available() is False"
        )
    for layer in module.modules():
        if type(layer) in (nn.Linear, PrepackedLinear):
            layer.__class__, layer._kept = PrepackedLinear, {}


def is_prepacked(module):
    """Whether `module` has prepacked layers."""
    return any(isinstance(layer, PrepackedLinear) for layer in module.modules())


def can_prepack():
    """Whether this torch has the products that prepacked weights are for."""
    return PRODUCT is not None and torch.backends.mkldnn.is_available()
