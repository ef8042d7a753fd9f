"""The forward that is exported: of each image the runtime computes the tokens and sub-layers that the gates keep.

Of one image all tokens of the stream are alive and in order, so nothing is masked but what rounds their number up. Several
have as many places as the fullest of them needs, the fewer the deeper; what pads the others no query attends to.

Letters: B images, N tokens of the stream, D channels, H heads, d channels of a head, C classes, L layers.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..model.bypass import bypass_of
from ..model.cls_attention import cls_attention, value_length
from ..model.configuration_dynvit import pair
from ..model.cost import cost, noting_macs
from ..model.decisions import LayerDecisions
from ..model.encoder import layer_notes
from ..model.gate_merge import MergeGate
from ..model.gates import GATES
from ..model.layer_packed import spread_heads
from ..model.layer_reading import reads_alone
from ..model.prepack import are_joinable
from ..model.resolution import resized
from .leaving import leave, word_places
from .parting import Parting, fixed_counts
from .skipping import run
from .tokens import Tokens


class Stream(nn.Module):
    """pixel_values (B, channels, height, width) -> logits (B, C) and cost (B,) of a model with gates.

    Images have the size that the model resizes others to (`resolution`), if it does, or the size `given`.

    Args:
        model: a `DynViTForImageClassification` that `check_model` lets pass.
        square: whether the attention's mask is written out (N, N), as ONNX Runtime's kernel wants it.
        step: what N is rounded up to a multiple of, by tokens of size 0 that no other sees, where it is not known ahead: with
            several images, and with one where merge gates alone drop.
        many: whether B is any number; else it is 1.
        given: height and width of images that the graph itself resizes to the model's resolution; None: they have it.
        joint: whether queries, keys and values are one product, of weights that a compiler joins beforehand.
    """

    def __init__(self, model, square=False, step=1, many=False, given=None, joint=False):
        super().__init__()
        self.resizes = given is not None
        if self.resizes:
            self.rows, self.columns = map(nn.Buffer, resizing(given, pair(model.config.resolution)))
        drops = [gate for gates in model.gates for gate in gates.values() if gate.drop]
        self.model, self.square, self.many, self.joint = model, square, many, joint
        step = step if many or all(isinstance(gate, MergeGate) for gate in drops) else 1
        self.partings = [Parting(fixed, many, step) for fixed in fixed_counts(model)]
        self.notes = layer_notes(model)
        self.first, self.reads = len(model.host.protected), reads_alone(model)
        self.register_buffer("words", word_places(model.tokens_run, self.first), persistent=False)

    def forward(self, pixel_values):
        model, host = self.model, self.model.host
        if self.resizes:
            pixel_values = self.rows @ pixel_values @ self.columns
        x, side = host.embed(model.base_model, pixel_values, model.config.resolution is not None)
        tokens = Tokens(x, x.new_full(x.shape[:1], float(x.shape[1])), side=side)
        entry, ran = None, []
        for index, (layer, gates) in enumerate(zip(host.layers(model.base_model), model.gates, strict=True)):
            allowed = (True, True) if model.config.layer_mask is None else tuple(model.config.layer_mask[index])
            upfront = [gate for gate in gates.values() if gate.upfront]
            if entry is None and any(allowed) and upfront:
                entry = upfront[0].pool(tokens.x).unsqueeze(1)
            tokens, decided = self._layer(index, host.parts(layer), gates, tokens, allowed, entry)
            ran.append(decided)
        features = host.head(model.base_model, tokens.x, None, tokens.size)
        return model.classifier(features), self._cost(ran)

    def _layer(self, index, parts, gates, tokens, allowed, entry):
        """`Tokens` after a layer, and what it `Ran`."""
        before, heads, sublayers, searched, notes = tokens.count, None, None, 0, self.notes[index]
        if any(allowed):
            if "heads" in gates:
                heads = gates["heads"](tokens.x, "threshold").float()  # OpenVINO counts no bools
            if "sublayers" in gates:
                gate = gates["sublayers"]
                sublayers = gate(entry if gate.upfront else tokens.x, "threshold")
            if "attention_tokens" in gates:
                normed = parts.attention_norm(tokens.x)
                gate, parting = gates["attention_tokens"], self.partings[index]
                tokens, searched = leave(gate, normed, tokens, self.words, parting)
        hides = "heads" in gates and gates["heads"].hides_channels
        few = self.first if self.reads and index + 1 == len(self.model.gates) else None  # None: all
        steps = (
            lambda tokens: self._attention(parts, tokens, notes, few),
            lambda tokens: self._mlp(parts, tokens, hides, few),
        )
        whole = "sublayers" in gates and gates["sublayers"].whole
        tokens = tokens._replace(heads=heads).ready_to_note(notes)
        tokens = run(steps, bypass_of(gates), whole, tokens, sublayers, allowed, self.many)
        asked = any(allowed)
        if not all(allowed):
            allowed = torch.tensor([allowed], device=before.device)
            sublayers = allowed.expand(len(before), -1) if sublayers is None else sublayers & allowed
        return tokens, Ran(before, tokens.count, heads, sublayers, searched, asked)

    def _attention(self, parts, tokens, notes, few=None):
        """`Tokens` after it, with what it notes of them; of the last layer a few alone. Products with weights are those of all rows side by side."""
        x, size = tokens.x, tokens.size
        normed = parts.attention_norm(x)
        q, k, v = (
            t.unflatten(2, (-1, parts.head_dim)) for t in self._project(parts.projections, normed, few)
        )  # (B, N, H, d)
        if parts.turn is not None:
            q, k = parts.turn(q, k, tokens.side)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        bias = mask = None
        if size is not None:  # a key counts as often as it has patches
            bias = size.log()
            mask = bias[:, None, None]
            mask = mask.expand(-1, -1, q.shape[2], -1) if self.square else mask
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)  # (B, N, H, d)
        if tokens.heads is not None:
            out = out * tokens.heads[:, None, :, None].to(out.dtype)
        out = parts.residuals[0](parts.out(out.flatten(2).flatten(0, 1)))
        if "attention" in notes:
            tokens = tokens._replace(attention=cls_attention(q[:, :, :1], k, bias))
        if "values" in notes:
            tokens = tokens._replace(values=value_length(v.transpose(1, 2)))
        x = x if few is None else x[:, :few]
        return tokens._replace(x=x + out.view(x.shape))

    def _project(self, linears, normed, few):
        """Queries, keys and values (B, N, H * d) of normed (B, N, D), queries of the first `few` tokens."""
        if few is not None:
            return linears[0](normed[:, :few]), *self._project(linears[1:], normed, None)
        rows, number = normed.flatten(0, 1), 3 if len(linears) == 1 else len(linears)
        if self.joint and are_joinable(linears):
            weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
            joint = [F.linear(rows, torch.cat(weights), None if biases[0] is None else torch.cat(biases))]
        else:
            joint = [linear(rows) for linear in linears]
        parted = joint if len(joint) == number else joint[0].chunk(number, -1)
        return [t.view(*normed.shape[:2], -1) for t in parted]

    def _mlp(self, parts, tokens, hides, few=None):
        x = tokens.x if few is None else tokens.x[:, :few]
        normed = parts.mlp_norm(x)
        if hides:
            normed = normed * spread_heads(tokens.heads, normed).unsqueeze(1)
        return tokens._replace(x=x + parts.residuals[1](parts.mlp(normed.flatten(0, 1))).view(x.shape))

    def _cost(self, ran):
        """(B,), by the closed form of the model itself (model/cost.py), told the number of tokens in place of which."""
        model, batch = self.model, ran[0].before.shape[0]
        kept = [one.kept.unsqueeze(1) for one in ran]
        decisions = [LayerDecisions(own, own, one.heads, one.sublayers) for own, one in zip(kept, ran, strict=True)]
        config, tokens, full = model.config, model.tokens_run, model.num_tokens
        device = ran[0].before.device
        macs = sum(one.searched for one in ran) + torch.zeros(batch, device=device)
        for entry in config.gates or []:  # alike but for their weights
            layers = [layer for layer in entry.get("layers", range(len(ran))) if ran[layer].asked]
            if layers:
                gate = next(gate for gate in model.gates[layers[0]].values() if isinstance(gate, GATES[entry["gate"]]))
                spent = gate.macs(tokens, torch.stack([ran[layer].before for layer in layers]))
                macs = macs + (spent.sum(0) if torch.is_tensor(spent) else spent * len(layers))
        for notes, decided in zip(self.notes, decisions, strict=True):
            macs = macs + noting_macs(config, decided, tokens) if notes else macs
        return cost(config, decisions, batch, tokens, model.num_labels, macs, device, full, model.gates, tokens)


def resizing(given, wanted):
    """Matrices (H', H) and (W, W') that resize images (H, W) to (H', W') as the model does: products are in all runtimes."""
    (height, width), (rows, columns) = given, wanted
    down = resized(torch.eye(height)[None, None], (rows, height))[0, 0]
    return down, resized(torch.eye(width)[None, None], (width, columns))[0, 0]


class Ran(NamedTuple):
    """What a layer ran, for the cost."""

    before: torch.Tensor  # (B,) tokens that entered
    kept: torch.Tensor  # (B,) tokens that stayed
    heads: torch.Tensor | None  # (B, H)
    sublayers: torch.Tensor | None  # (B, 2)
    searched: torch.Tensor | int  # multiply-accumulates of finding partners that no gate names
    asked: bool  # whether its gates were asked
