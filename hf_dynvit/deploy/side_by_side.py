"""All ways to run a model, side by side: milliseconds of an image in turns, and predictions against PyTorch's.

Letters: B images.
"""

import math
import statistics

import torch
from tqdm import tqdm

from ..measure.forwards import DTYPES
from ..measure.timing import interleaved_seconds, milliseconds_of_each
from ..measure.ways import WayScore, WayTime
from .timing import LEAST_REPETITIONS, to_serve
from .ways import FIXED, GATED, PYTORCH, Way, runs_of


TRIALS = 2  # rounds after which the fastest of several ways to run a batch is taken
AT_ONCE = 8  # images of a forward where predictions are compared


def time_ways(graphs, pairs, pixel_values, size, seconds):
    """A `WayTime` for each way: of several to run a batch the fastest in two trials, then all in turns in one run.

    Args:
        graphs: `Graphs`. pairs: of `check_ways`. pixel_values: tensor (images, channels, height, width), as they come.
        size: of batches; what does not fill one is left out. seconds: of the timed rounds.
    """
    period = len(pixel_values) // size
    used, threads = pixel_values[: period * size], torch.get_num_threads()
    served = to_serve(graphs.models[GATED], used)
    best = {}
    with torch.inference_mode():
        for way, runs in tqdm(runs_of(graphs, pairs, size, threads), desc=f"batch {size}: first", unit="way"):
            batches = [_as_taken((served if run.resized else used).split(size), run, way) for run in runs]
            best[way] = _fastest(runs, batches)
        ms, rounds = milliseconds_of_each(
            {way: call for way, (_, call, _) in best.items()}, period, seconds, LEAST_REPETITIONS
        )
    return [
        WayTime(**way._asdict(), batch_size=size, how=how, ms=ms[way] / size, cost=cost, rounds=rounds)
        for way, (how, _, cost) in best.items()
    ]


def _fastest(runs, batches):
    """(how, function of the round's number, mean cost) of the `Run` that is fastest in two trials; the others are freed.

    Args:
        batches: of each run, those that it takes in turns.
    """

    def in_turns(run, taken):
        return lambda index: run.call(taken[index % len(taken)])

    calls = {run.how: in_turns(run, taken) for run, taken in zip(runs, batches, strict=True)}
    period = len(batches[0])
    spent = {how: [call(index)[1] for index in range(period)] for how, call in calls.items()}  # compiles what it needs
    how = next(iter(calls))
    if len(calls) > 1:
        took = interleaved_seconds(calls, TRIALS * period, warmup=0)
        how = min(took, key=lambda name: statistics.median(took[name]))
    return how, calls[how], 1.0 if spent[how][0] is None else _mean(spent[how])


def score_ways(graphs, pairs, pixel_values, labels=None):
    """A `WayScore` for each way, of single images where it runs them.

    Args:
        graphs, pairs, pixel_values: as in `time_ways`. labels: int64 tensor (images,); None: they are not known.
    """
    size = min(AT_ONCE, len(pixel_values))
    every = runs_of(graphs, pairs, size, torch.get_num_threads(), most=1)
    batches = {True: to_serve(graphs.models[GATED], pixel_values).split(size), False: pixel_values.split(size)}
    guesses = {}
    with torch.inference_mode():
        for way, (run, *_) in tqdm(every, desc="predictions", unit="way"):
            images = _as_taken(batches[run.resized], run, way)
            guesses[way] = torch.cat([torch.as_tensor(run.call(batch)[0]).argmax(1) for batch in images])
    found = []
    for way, guess in guesses.items():
        wanted = guesses.get(Way(PYTORCH, "float32", GATED if way.gates == FIXED else way.gates))
        found.append(
            WayScore(
                **way._asdict(),
                images=len(guess),
                same=None if wanted is None else (guess == wanted).float().mean().item(),
                accuracy=None if labels is None else (guess == labels).float().mean().item(),
            )
        )
    return found


def _as_taken(batches, run, way):
    """Batches as a `Run` takes them: arrays, or tensors of its number format."""
    return [batch.numpy() if run.numpy else batch.to(DTYPES[way.precision]) for batch in batches]


def _mean(spent):
    costs = [float(cost) for batch in spent for cost in batch]
    return math.fsum(costs) / len(costs)
