"""A table of latencies: milliseconds of a model's layers and gates on one device, and what an image takes by them.

Letters: B images, N tokens, L layers, K token counts.
"""

from dataclasses import asdict, dataclass, replace

import torch

from ..model.budgets import interpolated
from ..model.bypass import bypass_of
from .files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Milliseconds for one image of a batch, by the number of its tokens; between two counts they are interpolated.

    All images of a batch were as long as each other: where they are not, forwards take longer. Heads that are off are counted as if they were on: they save little (CONTRIBUTING.md).

    Attributes:
        device, threads, dtype, prepacked, kernels: what they were measured on. batch_size: images of a forward.
        tokens: K token counts, rising.
        attention, mlp: (K,), of a layer, by the tokens that it computes.
        gates: dicts of "layers", which have the same gates, and of what these take besides, (K,) by the tokens that enter:
            "open", where they leave out nothing, and "closed", where they leave out something, its bypass included.
        rest: of all that is not in the layers.

    Raises:
        ValueError: token counts that do not rise, or not as many times.
    """

    device: str
    threads: int
    dtype: str
    prepacked: bool
    batch_size: int
    tokens: list
    attention: list
    mlp: list
    gates: list
    rest: float
    kernels: bool = False
    sizes: list | None = None  # of the model (`network_of`); None: in a table of an earlier day

    def __post_init__(self):
        if not self.tokens or sorted(set(self.tokens)) != self.tokens:
            raise ValueError(f"tokens of a latency table must rise, got {self.tokens}")
        columns = [self.attention, self.mlp, *(group[how] for group in self.gates for how in ("open", "closed"))]
        if any(len(column) != len(self.tokens) for column in columns):
            raise ValueError(
                f"a latency table of {len(self.tokens)} token counts needs as many times, got {[*map(len, columns)]}"
            )

    def save(self, path):
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path):
        """What `save` has written.

        Raises:
            ValueError: a file that is damaged or holds something else; it names it.
        """
        try:
            return cls(**read_json(path))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} holds no latency table: {error}") from error

    def scaled(self, factor):
        """The table of a device that takes `factor` times as long for everything."""

        def times(column):
            return [factor * ms for ms in column]

        gates = [group | {how: times(group[how]) for how in ("open", "closed")} for group in self.gates]
        parts = {"attention": times(self.attention), "mlp": times(self.mlp)}
        return replace(self, **parts, gates=gates, rest=factor * self.rest)

    def check(self, model):
        """Refuse the table of another model: ValueError where tokens, sizes or layers with gates are not those of `model`, or layers
        that no table has."""
        check_layers(model)
        own = model.tokens_run, [layer for layer, gates in enumerate(model.gates) if gates]
        timed = self.tokens[-1], sorted(layer for group in self.gates for layer in group["layers"])
        if timed != own:
            raise ValueError(
                f"the latency table is of a model that runs {timed[0]} tokens, with gates in layers {timed[1]}; this one "
                f"runs {own[0]} tokens, with gates in layers {own[1]}"
            )
        if self.sizes not in (None, network_of(model)):
            raise ValueError(
                f"the latency table is of another model: layers, channels, weights of attention and of MLP were {self.sizes}, and "
                f"are {network_of(model)}"
            )

    def dense(self, model):
        """Milliseconds of an image whose tokens all pass all layers, without gates."""
        return len(model.gates) * (self.attention[-1] + self.mlp[-1]) + self.rest

    def of_decision(self, decision, alive):
        """What a layer takes without its gates under a `LayerDecisions`, of the tokens that are `alive` (B,): (B,)."""
        attention, mlp = computed(decision, alive)
        return self._at(self.attention, attention) * (attention > 0) + self._at(self.mlp, mlp) * (mlp > 0)

    def of_layers(self, model, outputs, asked=True):
        """Milliseconds of each layer for each image, its gates included: (L, B), on the device of the outputs.

        Args:
            model: the model that was measured. outputs: of a forward on all tokens.
            asked: whether its gates decided; else it ran what its mask allows (`gating="open"`), and of gates only the
                bypasses count.
        """
        groups = {layer: group for group in self.gates for layer in group["layers"]}
        alive, found = torch.full_like(outputs.cost, float(model.tokens_run), dtype=torch.float32), []
        for layer, (gates, decision) in enumerate(zip(model.gates, outputs.decisions, strict=True)):
            ms, mask = self.of_decision(decision, alive), model.config.layer_mask
            if layer in groups:
                decides = asked and (mask is None or any(mask[layer]))
                opened, closed = (self._at(groups[layer][how], alive) for how in ("open", "closed"))
                if not decides:  # a bypass takes what closed gates take more than open ones
                    opened, closed = 0 * opened, (closed - opened).clamp(min=0) * bool(bypass_of(gates))
                ms = ms + torch.where(torch.stack(computed(decision, alive)).amin(0) < alive, closed, opened)
            found.append(ms)
            if any(gate.drop for gate in gates.values()):
                alive = counted(decision.attention_tokens, alive)
        return torch.stack(found)

    def milliseconds(self, model, outputs, asked=True):
        """Milliseconds of each image, in a forward of `batch_size` like it: (B,); arguments as in `of_layers`."""
        return self.of_layers(model, outputs, asked).sum(0) + self.rest

    def _at(self, column, tokens):
        places, values = (
            torch.tensor(numbers, dtype=torch.float32, device=tokens.device) for numbers in (self.tokens, column)
        )
        return interpolated(places, values, tokens)


def check_layers(model):
    """Raise ValueError for a model whose last layer is another than the others: a table knows one kind."""
    if model.config.last_layer is not None:
        raise ValueError(
            f"latencies are those of whole layers, and last_layer of this model is {model.config.last_layer!r}: begin with a model without it"
        )


def network_of(model):
    """Of a model the number of layers, of channels, and of weights in attention and MLP: what times depend on beside tokens."""
    sizes = model.host.sizes(model.config)
    return [len(model.gates), sizes.width, sizes.attention_weights, sizes.mlp_weights]


def computed(decision, alive):
    """Tokens (B,) that attention, and that the MLP, computes under a `LayerDecisions`, of those `alive` (B,)."""
    attention, mlp = (counted(keep, alive) for keep in (decision.attention_tokens, decision.mlp_tokens))
    if decision.sublayers is None:
        return attention, mlp
    on = decision.sublayers > 0.5
    return attention * on[:, 0], mlp * on[:, 1]


def counted(keep, alive):
    """Tokens (B,) that a decision (B, N) keeps; None: those `alive`."""
    return alive if keep is None else (keep > 0.5).sum(1).float()
