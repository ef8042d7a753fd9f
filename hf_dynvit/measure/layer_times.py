"""Measures a `LatencyTable`: layers and gates of a model at several token counts, in the packed layout.

Layers run one after another, as in a forward, so that caches are as cold as there. All else that a forward does comes as
one number, by which a forward with open gates takes what it was measured to take.

Letters: B images, N tokens, K token counts.
"""

import copy
import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch

from ..model.cost import sizes_of
from ..model.decisions import LayerDecisions, TokenState
from ..model.encoder import can_compact
from ..model.gate import Exploration
from ..model.kernels import kernels_loaded
from ..model.layer import Seen, run_layer
from ..model.prepack import can_prepack, is_prepacked
from ..model.resolution import resized
from .latency import LatencyTable, check_layers, network_of
from .precision import in_own_precision
from .provenance import device_name
from .timing import interleaved_medians


SHARES = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)  # of the tokens of an image, at which layers are timed
LEAST_TOKENS = 4  # besides the protected ones
WIDE = 100.0  # shift of logits that opens or closes whatever gates may decide
HOW = {"open": Exploration(shift=WIDE), "closed": Exploration(shift=-WIDE)}
ROUNDS = 10


@contextmanager
def served(model):
    """The model in evaluation mode and packed, as long as the context lasts."""
    training, layout, model.layout = model.training, model._layout, None
    try:
        yield model.eval()
    finally:
        model.layout = layout
        if training:
            model.train()


def to_serve(model, dtype):
    """A copy of a model to serve: in a dtype, and on a CPU with prepacked weights if torch can; without kernels, unless loaded."""
    model = copy.deepcopy(model).to(dtype).eval()
    if model.device.type == "cpu" and can_prepack():
        model.prepack()
    return model


def circumstances(model, batch_size):
    """Of a `LatencyTable` the fields that say what it is of, were it measured now."""
    return {
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prepacked": is_prepacked(model),
        "kernels": kernels_loaded(),
        "batch_size": batch_size,
    }


@torch.inference_mode()
def measure_latencies(model, pixel_values, rounds=ROUNDS, medians=interleaved_medians):
    """The `LatencyTable` of a model on the device where it is.

    Args:
        model: a `DynViTModel`, in the dtype to serve it in, prepacked if it will be.
        pixel_values: (B, channels, height, width), a batch as it will be served.
        rounds: timed rounds. medians: what times calls, as `timing.interleaved_medians`.

    Raises:
        ValueError: as `check_layers`.
    """
    check_layers(model)
    with served(model), in_own_precision(model):
        return _measured(model, pixel_values, rounds, medians)


@torch.inference_mode()
def clocked(model, batches, shift=None, rounds=ROUNDS, medians=interleaved_medians):
    """Mean milliseconds of an image in forwards of `batches` of `pixel_values`, timed in turns, at a shift of thresholds."""
    run = partial(model, gating="threshold", exploration=Exploration(shift=shift))
    calls = {index: lambda _, batch=batch: run(batch) for index, batch in enumerate(batches)}
    with in_own_precision(model):
        return 1e3 * sum(medians(calls, rounds).values()) / sum(map(len, batches))


@torch.inference_mode()
def clocked_together(models, batches, rounds=ROUNDS, medians=interleaved_medians):
    """name -> `clocked` of several models, all timed in the same turns, so that none has the machine's better minutes.

    Args:
        models: name -> model.
    """

    def run(model, batch):
        with in_own_precision(model):
            model(batch, gating="threshold")

    calls = {
        (name, index): lambda _, model=model, batch=batch: run(model, batch)
        for name, model in models.items()
        for index, batch in enumerate(batches)
    }
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(served(model))
        seconds = medians(calls, rounds)
    images = sum(map(len, batches))
    return {name: 1e3 * sum(seconds[name, index] for index in range(len(batches))) / images for name in models}


def _measured(model, pixel_values, rounds, medians):
    """The table of a model in the state to measure it in; arguments as in `measure_latencies`."""
    layers, batch = _Layers(model, pixel_values), len(pixel_values)
    counts, everywhere = layers.counts(), list(range(len(model.gates)))
    chains = {}  # name, token count -> runs layers one after another and returns their decisions
    for count in counts:
        chains["block", count] = partial(layers.run, count, everywhere)
        chains["attention", count] = partial(layers.run, count, everywhere, replay=layers.attention_alone())
        for group, members in enumerate(layers.groups()):
            for how in HOW if count > counts[0] else ():
                chains[(group, how), count] = partial(layers.run, count, members, HOW[how])
    calls = {name: lambda _, chain=chain: chain() for name, chain in chains.items()}

    def whole(_=0):
        return model(pixel_values, gating="threshold", exploration=HOW["open"])

    seconds = medians(calls | {"whole": whole}, rounds)

    def ms(name, members=everywhere):
        return [1e3 * seconds[name, count] / (batch * len(members)) for count in counts if (name, count) in seconds]

    table = LatencyTable(
        **circumstances(model, batch),
        sizes=network_of(model),
        tokens=counts,
        attention=ms("attention"),
        mlp=[block - attention for block, attention in zip(ms("block"), ms("attention"), strict=True)],
        gates=[],
        rest=0.0,
    )
    gates = []
    for group, members in enumerate(layers.groups()):
        times = {"layers": members}
        for how in HOW:
            alive = {count: torch.full((batch,), float(count), device=model.device) for count in counts[1:]}
            beside = [_mean(table, chains[(group, how), count](), there) for count, there in alive.items()]
            found = [taken - other for taken, other in zip(ms((group, how), members), beside, strict=True)]
            times[how] = [found[0], *found]  # protected tokens alone leave gates nothing to decide
        gates.append(times)
    table = replace(table, gates=gates)
    in_layers = table.of_layers(model, whole()).sum(0).mean().item()
    return replace(table, rest=1e3 * seconds["whole"] / batch - in_layers)


def _mean(table, decisions, alive):
    """Milliseconds that layers take without their gates, all of tokens `alive` (B,): the mean of images and layers."""
    return torch.stack([table.of_decision(decision, alive) for decision in decisions]).mean().item()


class _Layers:
    """The layers of a model, to be run on any number of the tokens of a batch."""

    def __init__(self, model, pixel_values):
        self.model, self.host = model, model.host
        self.layers = self.host.layers(model.base_model)
        resolution = model.config.resolution
        pixel_values = pixel_values if resolution is None else resized(pixel_values, resolution)
        self.x, self.side = self.host.embed(model.base_model, pixel_values, resolution is not None)
        self.merges = any(gate.merge for gates in model.gates for gate in gates.values())

    def counts(self):
        """Token counts to time at, the first that of the protected ones."""
        full, protected = self.x.shape[1], sizes_of(self.model.config).protected
        least = min(full, protected + LEAST_TOKENS)
        return [protected, *sorted({max(least, round(share * full)) for share in SHARES})]

    def groups(self):
        """Lists of layers whose gates are alike."""
        found, entries = {}, self.model.config.gates or []
        for layer, gates in enumerate(self.model.gates):
            here = [entry for entry in entries if layer in entry.get("layers", range(len(self.model.gates)))]
            alike = json.dumps([{**entry, "layers": None} for entry in here], sort_keys=True)
            if gates:
                found.setdefault(alike, []).append(layer)
        return list(found.values())

    def attention_alone(self):
        """`LayerDecisions` of all images."""
        return LayerDecisions(sublayers=torch.tensor([True, False], device=self.x.device).repeat(len(self.x), 1))

    def run(self, count, members, exploration=None, replay=None):
        """Some layers on `count` tokens, with their gates if there is an exploration; returns their `LayerDecisions`."""
        x = self.x[:, :count]
        side = None if self.side is None else self.side[:, :count]
        size = torch.ones(x.shape[:2], device=x.device) if self.merges else None
        seen = Seen(
            gating="threshold",
            packed=True,
            replay=replay,
            exploration=exploration,
            state=TokenState(size=size, side=side),
            allowed=(True, True),
            wants_weights=False,
            entry=None,
            ahead=None,
            compacts=can_compact(self.model, False),
        )
        decisions = []
        for layer in members:
            gates = {} if exploration is None else self.model.gates[layer]
            upfront = [gate for gate in gates.values() if gate.upfront]
            here = seen._replace(entry=upfront[0].pool(x).unsqueeze(1)) if upfront else seen
            decisions.append(run_layer(self.host, self.layers[layer], gates, x, here)[1])
        return decisions
