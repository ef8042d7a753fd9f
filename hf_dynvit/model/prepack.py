"""Inference on CPU with weights in the order that oneDNN's products want, reordered once instead of in every call.

torch.compile does the same for models that it may freeze; this needs no compiler and serves any number of rows.
"""

from ctypes import string_at
from functools import cache
from typing import NamedTuple

import torch
from torch import nn


PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
WORTH = 2**20  # multiply-accumulates; the call itself costs more than the plain one, which pays from about here on
SAMPLE = 32  # elements of a weight that each forward compares, by their bytes: a call of torch's would take longer


class Reordered(NamedTuple):
    """The weights of one or several layers, reordered, and what tells whether they are still those."""

    weight: torch.Tensor  # of all layers in one
    stamps: list  # address and version of each plain weight
    samples: list  # address and content of a few bytes of each
    plain: list  # the plain weights where they lie, so that no other tensor gets their addresses

    @classmethod
    def of(cls, weights):
        """weights: list of (out, in), of equal `in`."""
        with torch.no_grad():
            plain = [weight.detach() for weight in weights]
            joined = torch.cat(plain) if len(plain) > 1 else plain[0]
            reordered = torch.ops.mkldnn._reorder_linear_weight(joined)
        return cls(reordered, _stamps(weights), [_sample(weight) for weight in plain], plain)

    def is_of(self, weights):
        """Whether `weights` are what was reordered: not all changes raise a version, fused optimizers' do not."""
        if self.stamps != _stamps(weights):
            return False
        return all(string_at(address, len(content)) == content for address, content in self.samples)


def _stamps(weights):
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]


def _sample(weight):
    row = weight[len(weight) // 2]
    size = row.element_size() * (min(len(row), SAMPLE) if row.is_contiguous() else 1)
    return row.data_ptr(), string_at(row.data_ptr(), size)


class PrepackedLinear(nn.Linear):
    """An `nn.Linear` that keeps a reordered copy of its weight for evaluation on CPU without gradient.

    The copy is dropped when the layer trains, moves or computes with gradient, and renewed when the weight is exchanged,
    changed in place, or differs in one of the few elements that each forward compares: what fused optimizers and merged
    adapters do behind autograd's back is seen, a change of single elements of `weight.data` is not.
    """

    _kept = None  # number of joined layers -> Reordered

    def forward(self, x, activation="none"):
        """x (..., in) -> (..., out); activation: "none" or "gelu" (the exact one), of the output."""
        if not self.serves(x):
            out = super().forward(x)
            return nn.functional.gelu(out) if activation == "gelu" else out
        return PRODUCT(x, self._reordered(self), self._parameters["bias"], activation, [], "none")

    def joint(self, others, x):
        """x (..., in) -> (..., sum of outs) of this layer, which `serves`, and others, if all `are_joinable`."""
        linears = (self, *others)
        bias = None if self.bias is None else torch.cat([linear.bias for linear in linears])
        return PRODUCT(x, self._reordered(*linears), bias, "none", [], "none")

    def serves(self, x):
        """Whether the reordered weight can be used for x."""
        if torch.is_grad_enabled():
            if not torch.compiler.is_compiling():
                self.drop()  # an update of the weight may follow
            return False
        # At one image Module.__getattr__ would cost what the product does; a computed weight is no parameter.
        weight = self._parameters.get("weight")
        return (
            weight is not None
            and not self.training
            and not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # a graph holds plain products
            and x.dtype == weight.dtype
            and _has_products(x.dtype)
            and x.numel() * weight.shape[0] >= WORTH
            and x.device.type == weight.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )

    def drop(self):
        """Forget the reordered copies; the next forward that can use them makes them anew."""
        if self._kept:
            self._kept = {}

    def train(self, mode=True):
        if mode:
            self.drop()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self.drop()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.drop()
        return super()._load_from_state_dict(*args, **kwargs)

    def _reordered(self, *linears):
        weights = [linear._parameters["weight"] for linear in linears]
        kept = self._kept.get(len(weights))
        if kept is None or not kept.is_of(weights):
            kept = self._kept[len(weights)] = Reordered.of(weights)
        return kept.weight

    def __getstate__(self):
        return self.__dict__ | {"_kept": {}}


def is_plain(module, *types):
    """Whether `module` is of exactly one of these types, without hooks, adapter, parametrization or another `forward`."""
    own = module.__dict__
    return (
        type(module) in types
        and not (own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"])
        and not own["_backward_pre_hooks"]
        and "forward" not in own
    )


def are_joinable(linears):
    """Whether these layers are plain linear ones whose weights and biases can be one."""
    dtypes, biased = set(), set()
    for linear in linears:
        if not is_plain(linear, PrepackedLinear, nn.Linear):
            return False
        weight, bias = linear._parameters["weight"], linear._parameters["bias"]
        if type(weight) is not nn.Parameter:
            return False
        dtypes.add(weight.dtype)
        biased.add(bias is None)
    return len(dtypes) == len(biased) == 1


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

    Raises:
        ValueError: a module that is not on CPU, or a torch without oneDNN.
    """
    devices = {parameter.device.type for parameter in module.parameters()}
    if devices != {"cpu"}:
        raise ValueError(f"prepacked weights are for models on CPU, this one is on {sorted(devices)}")
    if not can_prepack():
        raise ValueError("prepacked weights need a torch with oneDNN: torch.backends.mkldnn.is_available() is False")
    for layer in module.modules():
        if type(layer) in (nn.Linear, PrepackedLinear):
            layer.__class__, layer._kept = PrepackedLinear, {}


def is_prepacked(module):
    """Whether `module` has prepacked layers."""
    return any(isinstance(layer, PrepackedLinear) for layer in module.modules())


def can_prepack():
    """Whether this torch has the products that prepacked weights are for."""
    return PRODUCT is not None and torch.backends.mkldnn.is_available()
