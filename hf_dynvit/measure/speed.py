"""The speed of packed forwards against the fastest dense model, timed in turns in one run, and the memory of both."""

import math
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ..model.kernels import kernels_loaded
from .dense import KERNELS, OURS, PROGRAMS
from .memory import kept_mib, peak_mib
from .timing import interleaved_seconds, rounds_within, with_progress


PROGRAM = "program"  # of the calls: the model itself, compiled as a whole


@dataclass(kw_only=True)
class Speed:
    """One packed model at one batch size; what follows from the measured fields is computed.

    Attributes:
        timed_cost: mean of the timed forwards, gates included. prepacked, kernels: whether the packed model ran so.
        dense_ms: name of a dense way -> milliseconds of a batch. other_ms: the same of other runtimes.
        peak_mib: "dense" (the leanest whose memory torch counts, which a program's is not), `OURS` and "packed" -> MiB held at once during a forward and kept from the first
            one on, beyond weights and inputs. prepacked_mib: what of it is kept.
        program_ms: milliseconds of the model itself compiled as a whole; None: it was not. program_speedup: fastest dense / that.
        fastest: of the dense ways. speedup: fastest dense / packed. gates_speedup: our model without gates / packed, what
            skipping itself is worth. dense_cost: of the fastest, which may leave out what the classifier does not read. predicted: what the two
            costs promise. realised: the share of it that is measured.
    """

    batch_size: int
    rounds: int
    prepacked: bool
    timed_cost: float
    dense_ms: dict
    other_ms: dict
    packed_ms: float
    peak_mib: dict
    prepacked_mib: dict
    kernels: bool = False
    program_ms: float | None = None
    dense_cost: float = 1.0
    program_speedup: float | None = field(init=False)
    fastest: str = field(init=False)
    speedup: float = field(init=False)
    gates_speedup: float | None = field(init=False)
    predicted: float = field(init=False)
    realised: float = field(init=False)
    dense_images_per_second: float = field(init=False)
    packed_images_per_second: float = field(init=False)

    def __post_init__(self):
        self.fastest = min(self.dense_ms, key=self.dense_ms.get)
        dense = self.dense_ms[self.fastest]
        self.speedup = dense / self.packed_ms
        self.program_speedup = dense / self.program_ms if self.program_ms else None
        self.gates_speedup = self.dense_ms[OURS] / self.packed_ms if OURS in self.dense_ms else None
        self.predicted = self.dense_cost / self.timed_cost
        self.realised = self.speedup * self.timed_cost / self.dense_cost
        self.dense_images_per_second = 1e3 * self.batch_size / dense
        self.packed_images_per_second = 1e3 * self.batch_size / self.packed_ms

    def best(self):
        """The speed-up of the faster way of the two that the model has."""
        return max(self.speedup, self.program_speedup or 0.0)


class Race(NamedTuple):
    """What `race` measured, by the names of its calls: milliseconds, MiB, mean costs of those that have one."""

    rounds: int
    ms: dict
    kept_mib: dict
    peak_mib: dict
    costs: dict

    def speed(self, batch_size, dense, packed, others, prepacked, kind=Speed, **facts):
        """A `Speed`.

        Args:
            dense, others: names of calls. packed: the name of one. facts: further fields of `kind`.
        """
        leanest = min((name for name in dense if name not in PROGRAMS), key=self.peak_mib.get)
        memory = {"dense": leanest, OURS: OURS, "packed": packed}
        return kind(
            **facts,
            batch_size=batch_size,
            rounds=self.rounds,
            prepacked=prepacked,
            kernels=kernels_loaded(),
            timed_cost=self.costs[packed],
            dense_cost=1.0 if min(dense, key=self.ms.get) in KERNELS else self.costs.get(OURS, 1.0),
            dense_ms={name: self.ms[name] for name in dense},
            other_ms={name: self.ms[name] for name in others},
            packed_ms=self.ms[packed],
            program_ms=self.ms.get(PROGRAM),
            peak_mib={name: self.peak_mib[key] for name, key in memory.items()},
            prepacked_mib={name: self.kept_mib[key] for name, key in memory.items()},
        )


def race(calls, others, turns, device, seconds, rounds=None, period=1, shared=None):
    """Run each call once for each of its turns, measure its memory, then time all of them in turns.

    Args:
        calls: name -> function of the round's number that gives a model's outputs. others: the same of other runtimes.
        turns: name -> number of different forwards that a call takes in turns, 1 unless given: all run before any is
            timed, for 16-bit products on CPU compile a kernel per number of rows.
        seconds: time for the rounds. rounds: their number instead.
        period: rounds in which the forwards repeat; a call's time is the mean over them, which differ in cost, of the
            median over repetitions, which differ in luck.
        shared: name -> an earlier name that runs the same model, so that what that one keeps is kept here as well.
    """
    kept, costs = {}, {}
    for name, call in calls.items():
        outputs = []

        def run_all(name=name, call=call, outputs=outputs):
            outputs += [getattr(call(index), "cost", None) for index in range(turns.get(name, 1))]

        kept[name] = kept_mib(run_all, device) + (kept[shared[name]] if name in (shared or {}) else 0)
        if outputs[0] is not None:
            costs[name] = sum(cost.sum().item() for cost in outputs) / sum(len(cost) for cost in outputs)
    peaks = {name: kept[name] + peak_mib(partial(call, 0), device) for name, call in calls.items()}
    timed = calls | others
    rounds = rounds or rounds_within(timed, seconds, warmup=len(others) > 0)
    rounds = math.ceil(rounds / period) * period  # each forward is timed equally often
    took = interleaved_seconds(with_progress(timed, rounds, warmup=0), rounds, warmup=0)
    ms = {
        name: 1e3 * statistics.mean(statistics.median(times[start::period]) for start in range(period))
        for name, times in took.items()
    }
    return Race(rounds, ms, kept, peaks, costs)
