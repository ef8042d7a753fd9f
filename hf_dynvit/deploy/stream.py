"""The forward that is exported: one image, of whose tokens and sub-layers the runtime computes what the gates keep.

Of one image all tokens of the stream are alive and in order, so nothing is masked but what rounds their number up; where sub-layers are decided
the graph branches (`torch.cond`, ONNX If).

Letters: N tokens of the stream, D channels, H heads, d channels of a head, C classes, L layers.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..model.bypass import bypass_of
from ..model.cost import cost
from ..model.decisions import LayerDecisions
from ..model.gate_merge import MergeGate
from ..model.gates import GATES
from ..model.layer_packed import spread_heads
from .leaving import Tokens, leave, word_places


class Stream(nn.Module):
    """pixel_values (1, channels, height, width) -> logits (1, C) and cost (1,) of a model with gates.

    Images have the size that the model resizes others to (`resolution`), if it does.

    Args:
        model: a `DynViTForImageClassification` that `check_model` lets pass.
        square: whether the attention's mask is written out (N, N), as ONNX Runtime's kernel wants it.
        step: where merge gates alone drop, N is rounded up to a multiple of it, by tokens of size 0 that no other sees.
    """

    def __init__(self, model, square=False, step=1):
        super().__init__()
        drops = [gate for gates in model.gates for gate in gates.values() if gate.drop]
        self.model, self.square = model, square
        self.step = step if all(isinstance(gate, MergeGate) for gate in drops) else 1
        self.first = len(model.host.protected)
        self.register_buffer("words", word_places(model.tokens_run + self.step, self.first), persistent=False)

    def forward(self, pixel_values):
        model, host = self.model, self.model.host
        x, side = host.embed(model.base_model, pixel_values, model.config.resolution is not None)
        tokens = Tokens(x[0], x.new_full((1,), float(x.shape[1])), side=None if side is None else side[0])
        entry, ran = None, []
        for index, (layer, gates) in enumerate(zip(host.layers(model.base_model), model.gates, strict=True)):
            allowed = (True, True) if model.config.layer_mask is None else tuple(model.config.layer_mask[index])
            upfront = [gate for gate in gates.values() if gate.upfront]
            if entry is None and any(allowed) and upfront:
                entry = upfront[0].pool(tokens.x[None]).unsqueeze(1)
            tokens, decided = self._layer(host.parts(layer), gates, tokens, allowed, entry)
            ran.append(decided)
        size = None if tokens.size is None else tokens.size[None]
        features = host.head(model.base_model, tokens.x[None], None, size)
        return model.classifier(features), self._cost(ran)

    def _layer(self, parts, gates, tokens, allowed, entry):
        """`Tokens` after a layer, and what it `Ran`."""
        before, heads, sublayers, searched = tokens.count, None, None, 0
        if any(allowed):
            if "heads" in gates:
                heads = gates["heads"](tokens.x[None], "threshold").float()  # OpenVINO counts no bools
            if "sublayers" in gates:
                gate = gates["sublayers"]
                sublayers = gate(entry if gate.upfront else tokens.x[None], "threshold")
            if "attention_tokens" in gates:
                normed = parts.attention_norm(tokens.x)
                tokens, searched = leave(gates["attention_tokens"], normed, tokens, self.words, self.step)
        hide = heads if "heads" in gates and gates["heads"].hides_channels else None
        steps = (
            lambda x: x + self._attention(parts, x, tokens, heads),
            lambda x: x + self._mlp(parts, x, hide),
        )
        whole = "sublayers" in gates and gates["sublayers"].whole
        x = run(steps, bypass_of(gates), whole, tokens.x, sublayers, allowed)
        asked = any(allowed)
        if not all(allowed):
            allowed = torch.tensor([allowed])
            sublayers = allowed if sublayers is None else sublayers & allowed
        return tokens._replace(x=x), Ran(before, tokens.count, heads, sublayers, searched, asked)

    def _attention(self, parts, x, tokens, heads):
        normed = parts.attention_norm(x)
        joint = [linear(normed) for linear in parts.projections]
        parted = joint if len(joint) == 3 else joint[0].chunk(3, -1)
        q, k, v = (t.unflatten(-1, (-1, parts.head_dim)) for t in parted)  # (N, H, d)
        if parts.turn is not None:
            q, k = parts.turn(q, k, tokens.side)
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        bias = None
        if tokens.size is not None:  # a key counts as often as it has patches
            if torch.compiler.is_exporting():  # what a branch does not know
                torch._check(x.shape[0] > 2)
                torch._check(tokens.size.shape[0] == x.shape[0])
            bias = tokens.size.log().view(1, 1, 1, -1)
            bias = bias.expand(-1, -1, x.shape[0], -1) if self.square else bias
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[0].transpose(0, 1)  # (N, H, d)
        if heads is not None:
            out = out * heads.unsqueeze(2).to(out.dtype)
        return parts.residuals[0](parts.out(out.flatten(1)))

    def _mlp(self, parts, x, hide):
        normed = parts.mlp_norm(x)
        if hide is not None:
            normed = normed * spread_heads(hide, normed)
        return parts.residuals[1](parts.mlp(normed))

    def _cost(self, ran):
        """(1,), by the closed form of the model itself (model/cost.py), told the number of tokens in place of which."""
        model = self.model
        decisions = [LayerDecisions(one.kept[None], one.kept[None], one.heads, one.sublayers) for one in ran]
        macs = sum(one.searched for one in ran) + torch.zeros(1)
        for entry in model.config.gates or []:  # alike but for their weights
            layers = [layer for layer in entry.get("layers", range(len(ran))) if ran[layer].asked]
            if layers:
                gate = next(gate for gate in model.gates[layers[0]].values() if type(gate) is GATES[entry["gate"]])
                spent = gate.macs(model.tokens_run, torch.cat([ran[layer].before for layer in layers]))
                macs = macs + (spent.sum() if torch.is_tensor(spent) else spent * len(layers))
        run, full = model.tokens_run, model.num_tokens
        return cost(model.config, decisions, 1, run, model.num_labels, macs, "cpu", full, model.gates, run)


class Ran(NamedTuple):
    """What a layer ran, for the cost."""

    before: torch.Tensor  # (1,) tokens that entered
    kept: torch.Tensor  # (1,) tokens that stayed
    heads: torch.Tensor | None  # (1, H)
    sublayers: torch.Tensor | None  # (1, 2)
    searched: torch.Tensor | int  # multiply-accumulates of finding partners that no gate names
    asked: bool  # whether its gates were asked


def run(steps, bypasses, whole, x, sublayers, allowed):
    """x (N, D) after attention and MLP, or after what is added in their place.

    Args:
        steps: of attention and MLP, functions x -> x. bypasses: none, one for both, or one for each.
        whole: whether the two are decided alike. sublayers: bool (1, 2), or None for both. allowed: which may run at all.
    """
    instead = [lambda x, bypass=bypass: x + bypass(x) for bypass in bypasses]
    if whole or len(bypasses) == 1 or sublayers is None and not bypasses:
        steps = [step for step, may in zip(steps, allowed, strict=True) if may]
        return _either(sublayers, 0, lambda x: _all(steps, x), instead, x, steps)
    for index, step in enumerate(steps):
        x = _either(sublayers, index, step, instead[index : index + 1], x, allowed[index])
    return x


def _either(sublayers, index, step, instead, x, allowed):
    """x after `step` where it runs, else after what is there instead; no branch where it is known."""

    def other(x):
        return _all(instead, x) if instead else x.clone()  # a branch returns no tensor that it was given

    if not allowed:
        return _all(instead, x)
    return step(x) if sublayers is None else torch.cond(sublayers[0, index], step, other, (x,))


def _all(steps, x):
    for step in steps:
        x = step(x)
    return x
