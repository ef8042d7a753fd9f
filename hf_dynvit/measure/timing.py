"""Seconds of things to compare, measured in turns so that a machine that slows down slows all of them."""

import random
import statistics
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm


LEAST_ROUNDS, MOST_ROUNDS = 7, 500


@dataclass
class Timing:
    """Milliseconds of an image in batches of one size: exported, of the dense model in the same runtime, of the same model
    in PyTorch; with the number of images, their mean cost, the rounds that were timed, and what the dense one costs."""

    batch_size: int
    images: int
    cost: float
    exported: float
    dense: float
    packed: float
    rounds: int
    dense_cost: float = 1.0

    def speedup(self):
        """Over the dense model in the same runtime."""
        return self.dense / self.exported

    def realised(self):
        """Which share of what the cost promises is measured."""
        return self.cost / self.dense_cost * self.speedup()


def seconds_of_work(device):
    """The clock of a long run, which no other can be timed in turns with; only differences mean anything.

    On a single CPU thread the CPU time of this process, which other work on the machine hardly changes, so that runs can be
    split over cores; wall time elsewhere, where threads and devices work beside each other.
    """
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def interleaved_seconds(calls, rounds, warmup=1):
    """Time each call once per round, in another order each time, the same in every run.

    Args:
        calls: name -> function of the round's number, so that rounds can use different batches; warm-up rounds get 0.
        rounds: timed rounds. warmup: untimed ones before them (compilation, caches).

    Returns:
        dict, name -> list of `rounds` floats in seconds; entry i of all lists is from the same round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names, seconds = list(calls), {name: [] for name in calls}
    _run(calls, warmup)
    shuffle = random.Random(0).shuffle
    for index in range(rounds):
        shuffle(names)  # nobody always runs after the same neighbour, its cache and its threads that wait for more
        for name in names:
            seconds[name].append(_seconds(calls[name], index))
    return seconds


def milliseconds_of_each(calls, period, seconds, least):
    """(name -> milliseconds of a call, rounds): the mean over inputs, of the median over the repetitions of each.

    Args:
        calls: as in `interleaved_seconds`, each run once on every input before. period: after so many rounds inputs repeat.
        seconds: about what all rounds take. least: repetitions of each input, whatever the seconds.
    """
    rounds = max(least, rounds_within(calls, seconds, warmup=0) // period) * period
    took = interleaved_seconds(with_progress(calls, rounds, warmup=0), rounds, warmup=0)
    medians = {
        name: [statistics.median(times[start::period]) for start in range(period)] for name, times in took.items()
    }
    return {name: 1e3 * statistics.mean(found) for name, found in medians.items()}, rounds


def interleaved_medians(calls, rounds, warmup=1):
    """Median seconds of each call; the arguments are those of `interleaved_seconds`."""
    return {name: statistics.median(times) for name, times in interleaved_seconds(calls, rounds, warmup).items()}


def rounds_within(calls, seconds, warmup=1):
    """Rounds that take about `seconds`, from one round after `warmup` rounds."""
    _run(calls, warmup)
    taken = _seconds(lambda index: _run(calls, 1), 0)
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / taken)))


def with_progress(calls, rounds, warmup=1):
    """The same calls, counted on a bar; it is drawn once a second at most, which medians do not see."""
    bar = tqdm(total=(rounds + warmup) * len(calls), desc="timing", unit="forward", leave=False, mininterval=1.0)

    def counted(call):
        def run(index):
            call(index)
            bar.update()
            if bar.n >= bar.total:
                bar.close()

        return run

    return {name: counted(call) for name, call in calls.items()}


def _run(calls, rounds):
    for call in rounds * list(calls.values()):
        call(0)


def _seconds(call, index):
    _wait_for_gpu()
    start = time.perf_counter()
    call(index)
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
