"""What was claimed of layer skipping beside what was measured of it, from the results that are there."""

import statistics
from typing import NamedTuple

from ..measure.dense import OURS
from .names import short
from .rivals import best_mask, dense_checkpoint, mean, percent, policies, trained_alike
from .tables import Commands, table


class Claim(NamedTuple):
    """What was claimed, and where."""

    text: str
    source: str


ABSTRACT = "https://etd.aau.edu.et/items/34d0d3ef-9b0c-4960-ba82-d06f64d9ea63"
THROUGHPUT = Claim("53 % faster, and no less accurate", f"[abstract]({ABSTRACT})")
MEMORY = Claim("53 % less working memory", f"[abstract]({ABSTRACT})")
LAYERS = Claim("a third fewer layers", "ascribed to the joint search; in no source that can be read")
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
        trainings: as `by_seed` gives them. evaluations, searches, steps: the contents of the JSON files.
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
                "claimed": f"{claim.text} ({claim.source})",
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
    lines = []
    for runs in policy.trainings:
        lines.append(_trained("learned", runs, commands))
        dense, random = trained_alike(runs, trainings)
        lines += [_trained("dense, tuned as long", others, commands) for others in dense]
        lines += [_trained("random", others, commands) for others in random]
    if not policy.trainings:
        lines += [_evaluated("learned", results, commands) for results in policy.evaluations]
    mask = best_mask(policy, evaluations)
    lines += [_evaluated("static mask", mask, commands)] if mask else []
    checkpoint = dense_checkpoint(policy, evaluations)
    if checkpoint:
        results, accuracy = checkpoint
        lines.append(f"dense checkpoint: {100 * accuracy:.2f} {commands.refer(results['command'])}")
    return lines


def _trained(name, runs, commands):
    count = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    references = commands.refer([results["command"] for results in runs])
    return f"{name}: {percent(runs)}{count} at cost {mean(runs, 'cost'):.3f} {references}"


def _evaluated(name, results, commands):
    return (
        f"{name}: {100 * results['accuracy']:.2f} at cost {results['cost']:.3f} {commands.refer(results['command'])}"
    )


def speed_lines(policy, commands):
    """Throughput against the fastest dense model for each batch size, and the mean over them, as the claim has it; and
    against our own model without gates, which is what skipping is worth."""
    lines = []
    for results in policy.evaluations:
        for name, ratio in (("throughput", "speedup"), ("throughput against ours, no gates", "gates_speedup")):
            gains = [(f"batch {row['batch_size']}", row.get(ratio)) for row in results["throughput"]]
            if not gains or None in dict(gains).values():
                continue
            if len(gains) > 1:
                gains.append(("mean", statistics.mean(gain for _, gain in gains)))
            parts = [f"{batch} {100 * (gain - 1):+.0f} % ({_less(1 / gain)} time)" for batch, gain in gains]
            lines.append(f"{name}, {_where(results)}: {'; '.join(parts)} {commands.refer(results['command'])}")
    return lines


def memory_lines(policy, steps, commands):
    """Working memory, reordered weights included: of a forward for each batch size against the dense model that holds
    least and against ours without gates, and of a training step against the dense one."""
    lines = []
    for results in policy.evaluations:
        for name, rival in (("forward", "dense"), ("forward against ours, no gates", OURS)):
            peaks = [(row["batch_size"], row["peak_mib"]) for row in results["throughput"] if row.get("peak_mib")]
            parts = [f"batch {batch} {_less(peak['packed'] / peak[rival])}" for batch, peak in peaks if rival in peak]
            if parts:
                lines.append(f"{name}, {_where(results)}: {'; '.join(parts)} {commands.refer(results['command'])}")
    for step in steps:
        if step["gates"] == "block" and short(step["model"]) in policy.starts():
            lines.append(
                f"training step at random, cost {step['cost']:.3f}, {_where(step)}: batch {step['batch_size']} "
                f"{_less(step['memory_ratio'])} {commands.refer(step['command'])}"
            )
    return lines


def layer_lines(policy, commands):
    """Layers that an image skips; attention and MLP are half a layer each."""
    lines = []
    for results in policy.evaluations or [runs[0] for runs in policy.trainings]:
        shares = [share for kind in ("attention", "mlp") for share in results["usage"].get(kind, {}).values()]
        if shares:
            skipped, layers = sum(1 - share for share in shares) / 2, results.get("num_layers")
            of = f" of {layers} ({100 * skipped / layers:.0f} % fewer)" if layers else ""
            lines.append(f"skipped per image: {skipped:.1f} layers{of} {commands.refer(results['command'])}")
    return lines


def search_lines(policy, searches, commands):
    """What masks that were searched on this policy leave in the network, on images that did not choose them."""
    lines = []
    for search in searches:
        if policy.is_of(search["model"]):
            picked, without = search["picked"]["reported"], search["unmasked"]
            lines.append(
                f"search for {search['objectives']}: {100 * (1 - picked['layers']):.0f} % of the layers out, top-1 "
                f"{100 * picked['accuracy']:.1f} at cost {picked['cost']:.3f}, with all "
                f"{100 * without['accuracy']:.1f} at {without['cost']:.3f}, on {search['images_reported_on']} images "
                f"{commands.refer(search['command'])}"
            )
    return lines


def _where(results):
    return f"{results['device']}, {results['dtype']}"


def _less(ratio):
    """What a ratio to the dense model saves: "34 % less", "5 % more"."""
    return f"{abs(100 * (1 - ratio)):.0f} % {'less' if ratio <= 1 else 'more'}"
