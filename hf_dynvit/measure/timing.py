"""Seconds of things to compare, measured in turns so that a machine that slows down slows all of them."""

import statistics
import time

import torch


def interleaved_seconds(calls, rounds, warmup=1):
    """Time each call once per round, in an order that shifts from round to round.

    Args:
        calls: name -> callable taking the number of the round, so that rounds can use different batches; warm-up
            rounds get 0.
        rounds: timed rounds; each runs every call once.
        warmup: untimed rounds before them (compilation, caches).

    Returns:
        dict, name -> list of `rounds` floats in seconds; entry i of all lists is from the same round, so ratios can be
        taken per round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names = list(calls)
    for _ in range(warmup):
        for call in calls.values():
            call(0)
    seconds = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)  # nobody always runs after the same neighbour's cache
        for name in names[start:] + names[:start]:
            seconds[name].append(_seconds(calls[name], index))
    return seconds


def interleaved_medians(calls, rounds, warmup=1):
    """Median seconds of each call; the arguments are those of `interleaved_seconds`."""
    return {name: statistics.median(times) for name, times in interleaved_seconds(calls, rounds, warmup).items()}


@torch.no_grad()
def layer_latencies(model, pixel_values, rounds=20):
    """Share of the layers' time that each layer takes on this device, run densely.

    Args:
        model: a `DynViTModel`; its gates are not asked.
        pixel_values: (B, channels, height, width), the batch to time.

    Returns:
        (L,) floats that sum to 1.
    """
    was_training = model.training
    model.eval()
    tokens = model.vit.embeddings(pixel_values)
    calls = {str(index): lambda _, layer=layer: layer(tokens) for index, layer in enumerate(model.vit.layers)}
    medians = interleaved_medians(calls, rounds)
    model.train(was_training)
    seconds = torch.tensor([medians[name] for name in calls])
    return seconds / seconds.sum()


def _seconds(call, index):
    _wait_for_gpu()
    start = time.perf_counter()
    call(index)
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
