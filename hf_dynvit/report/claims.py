"""What was claimed of layer skipping beside what was measured of it, from the results that are there."""

import statistics

from ..measure.dense import OURS
from .markdown import Commands, table
from .names import short
from .rivals import best_mask, counted, dense_checkpoint, mean, percent, policies, trained_alike
from .tables import accuracy_at


ABSTRACT = "[abstract](https://etd.aau.edu.et/items/34d0d3ef-9b0c-4960-ba82-d06f64d9ea63)"
THROUGHPUT = f"53 % faster, and no less accurate ({ABSTRACT})"
MEMORY = f"53 % less working memory ({ABSTRACT})"
LAYERS = "a third fewer layers (ascribed to the joint search; in no source that can be read)"
INTRODUCTION = (
    "Of layer skipping: Mersha, MSc thesis, Addis Ababa University, 2023. Its abstract leaves open whether 53 % faster "
    "is a throughput of 1.53 or 53 % less time, a throughput of 2.13: both numbers are given. Random skipping and the "
    "tuned dense model were trained from the same checkpoint on as many images; the mask is the most accurate one of "
    "the cost of the policy, on the same images. Throughput is against the fastest dense model, memory against the one "
    "that holds least; what our own model saves with no gates at all is not the doing of skipping, so both are also "
    "given against that. The numbers stand with their circumstances in the tables above."
)


def claims_section(trainings, evaluations, searches, steps):
    """Parts of Markdown: heading, introduction, table and commands; none where there is no policy of layer skipping.

    Args:
        trainings: as `by_seed` gives them. evaluations, searches, steps: results.
    """
    commands, rows = Commands(), []
    for policy in policies(trainings, evaluations):
        measured = (
            (THROUGHPUT, accuracy_lines(policy, trainings, evaluations, commands) + speed_lines(policy, commands)),
            (MEMORY, memory_lines(policy, steps, commands)),
            (LAYERS, layer_lines(policy, commands) + search_lines(policy, searches, commands)),
        )
        rows += [
            {
                "data": policy.dataset,
                "policy": f"{policy.name}, budget {policy.budget}",
                "claimed": claim,
                "measured": "<br>".join(lines),
            }
            for claim, lines in measured
            if lines
        ]
    if not rows:
        return []
    return ["### What was claimed, what was measured", INTRODUCTION, table(rows), commands.listing()]


def accuracy_lines(policy, trainings, evaluations, commands):
    """Top-1 of the policy, and of what it must beat."""

    def line(name, runs):
        references = commands.refer([run.command for run in runs])
        return f"{name}: {percent(runs)}{counted(runs)} at cost {mean(runs, 'cost'):.3f} {references}"

    lines = []
    for runs in policy.trainings:
        lines.append(line("learned", runs))
        dense, random = trained_alike(runs, trainings)
        lines += [line("dense, tuned as long", others) for others in dense]
        lines += [line("random", others) for others in random]
    if not policy.trainings:
        lines += [line("learned", [results]) for results in policy.evaluations]
    mask = best_mask(policy, evaluations)
    lines += [line("static mask", [mask])] if mask else []
    checkpoint = dense_checkpoint(policy, evaluations)
    if checkpoint:
        results, accuracy = checkpoint
        lines.append(f"dense checkpoint: {100 * accuracy:.2f} {commands.refer(results.command)}")
    return lines


def speed_lines(policy, commands):
    """Throughput against the fastest dense model for each batch size, and the mean over them, as the claim has it; and
    against our own model without gates, which is what skipping is worth."""
    lines = []
    for results in policy.evaluations:
        for name, ratio in (("throughput", "speedup"), ("throughput against ours, no gates", "gates_speedup")):
            gains = [(f"batch {speed.batch_size}", getattr(speed, ratio)) for speed in results.throughput]
            if len(gains) > 1:
                gains.append(("mean", statistics.mean(gain for _, gain in gains)))
            parts = [f"{batch} {100 * (gain - 1):+.0f} % ({_less(1 / gain)} time)" for batch, gain in gains]
            if parts:
                lines.append(f"{name}, {_where(results)}: {'; '.join(parts)} {commands.refer(results.command)}")
    return lines


def memory_lines(policy, steps, commands):
    """Working memory, reordered weights included: of a forward for each batch size against the dense model that holds
    least and against ours without gates, and of a training step against the dense one."""
    lines = []
    for results in policy.evaluations:
        for name, rival in (("forward", "dense"), ("forward against ours, no gates", OURS)):
            peaks = [(speed.batch_size, speed.peak_mib) for speed in results.throughput]
            parts = [f"batch {batch} {_less(peak['packed'] / peak[rival])}" for batch, peak in peaks]
            if parts:
                lines.append(f"{name}, {_where(results)}: {'; '.join(parts)} {commands.refer(results.command)}")
    for timed in (timed for timed in steps if short(timed.model) in policy.starts()):
        lines += [
            f"training step at random, cost {step.cost:.3f}, {_where(timed)}: batch {timed.batch_size} "
            f"{_less(step.memory_ratio)} {commands.refer(timed.command)}"
            for step in timed.steps
            if step.gates == "block"
        ]
    return lines


def layer_lines(policy, commands):
    """Layers that an image skips; attention and MLP are half a layer each."""
    lines = []
    for results in policy.evaluations or [runs[0] for runs in policy.trainings]:
        shares = [share for kind in ("attention", "mlp") for share in results.usage.get(kind, {}).values()]
        if shares:
            skipped, layers = sum(1 - share for share in shares) / 2, results.num_layers
            of = f" of {layers} ({100 * skipped / layers:.0f} % fewer)"
            lines.append(f"skipped per image: {skipped:.1f} layers{of} {commands.refer(results.command)}")
    return lines


def search_lines(policy, searches, commands):
    """What masks that were searched on this policy leave in the network, on images that did not choose them."""
    return [
        f"search for {search.objectives}: {100 * (1 - search.picked['reported']['layers']):.0f} % of the layers out, top-1 "
        f"{accuracy_at(search.picked['reported'], ' at cost ')}, with all {accuracy_at(search.unmasked)}, "
        f"on {search.images_reported_on} images {commands.refer(search.command)}"
        for search in searches
        if policy.is_of(search.model)
    ]


def _where(results):
    return f"{results.device}, {results.dtype}"


def _less(ratio):
    """What a ratio to the dense model saves: "34 % less", "5 % more"."""
    return f"{abs(100 * (1 - ratio)):.0f} % {'less' if ratio <= 1 else 'more'}"
