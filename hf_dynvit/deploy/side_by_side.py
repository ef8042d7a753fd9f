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
from .ways import GATED, PYTORCH, Way, runs_of


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
    best, costs = {}, {}
    with torch.inference_mode():
        for way, runs in tqdm(runs_of(graphs, pairs, size, threads).items(), desc=f"batch {size}: first", unit="way"):
            calls, spent = {}, []
            for run in runs:
                images = (served if run.resized else used).split(size)
                images = _as_taken(images, run, way)
                calls[run.how] = lambda index, run=run, images=images: run.call(images[index % period])
                spent = [calls[run.how](index)[1] for index in range(period)]  # kernels for each number of tokens
            took = (
                interleaved_seconds(calls, TRIALS * period, warmup=0) if len(calls) > 1 else dict.fromkeys(calls, [0])
            )
            how = min(took, key=lambda name: statistics.median(took[name]))
            best[way], costs[way] = (how, calls[how]), 1.0 if spent[0] is None else _mean(spent)
        calls = {way: call for way, (_, call) in best.items()}
        ms, rounds = milliseconds_of_each(calls, period, seconds, LEAST_REPETITIONS)
    return [
        WayTime(**way._asdict(), batch_size=size, how=how, ms=ms[way] / size, cost=costs[way], rounds=rounds)
        for way, (how, _) in best.items()
    ]


def score_ways(graphs, pairs, pixel_values, labels=None):
    """A `WayScore` for each way, on the same images.

    Args:
        graphs, pairs, pixel_values: as in `time_ways`. labels: int64 tensor (images,); None: they are not known.
    """
    size = min(AT_ONCE, len(pixel_values))
    runs = {way: runs[0] for way, runs in runs_of(graphs, pairs, size, torch.get_num_threads()).items()}
    batches = {True: to_serve(graphs.models[GATED], pixel_values).split(size), False: pixel_values.split(size)}
    guesses = {}
    with torch.inference_mode():
        for way, run in tqdm(runs.items(), desc="predictions", unit="way"):
            images = _as_taken(batches[run.resized], run, way)
            guesses[way] = torch.cat([torch.as_tensor(run.call(batch)[0]).argmax(1) for batch in images])
    found = []
    for way, guess in guesses.items():
        wanted = guesses.get(Way(PYTORCH, "float32", way.gates))
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
