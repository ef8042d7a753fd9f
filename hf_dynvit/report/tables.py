"""The columns of each table of results: heading -> function of what a row is of; a new column is one more line."""

from dataclasses import asdict

from pandas import json_normalize

from ..measure.dense import OURS
from .markdown import ABSENT, table
from .names import cost_spread, model_name, processor, reported_on, short
from .results import Runtime
from .rivals import budget, counted, mean, percent


def of(columns, pick=lambda first, *rest: first):
    """Columns of one thing as columns of an item that holds it: first, or where `pick` finds it."""
    return {name: lambda *item, write=write: write(pick(*item)) for name, write in columns.items()}


def of_run(columns):
    """Columns of results as columns of a list of them that differ by seed alone: those of the first."""
    return of(columns, lambda runs: runs[0])


def before(runs):
    """Top-1 and cost of what training started from, or what a model is compared with: a dense model, unless gates were kept."""
    given = [run.dense or getattr(run, "checkpoint", None) for run in runs]
    return f"{100 * mean(given, 'accuracy'):.2f} at {mean(given, 'cost'):.3f}" if all(given) else ABSENT


def minutes(runs):
    """How long training took, and how many of the runs were resumed."""
    resumed = sum(run.resumed for run in runs)
    text = "" if not resumed else " (resumed)" if len(runs) == 1 else f" ({resumed} resumed)"
    return f"{mean(runs, 'train_seconds') / 60:.1f} min" + text


def peaks(speed):
    """Working memory of each, and of it the weights that are kept in another order."""
    kept = speed.prepacked_mib
    return "; ".join(
        f"{mib:.1f}" + (f" ({kept[name]:.1f})" if kept[name] else "") for name, mib in speed.peak_mib.items()
    )


def compiled(speed):
    """ "; compiled 1.90×" of a `Speed` whose model was timed compiled as a whole, too."""
    return f"; compiled {speed.program_speedup:.2f}×" if speed.program_speedup else ""


def accuracy_at(scores, at=" at "):
    """Top-1 and cost of a mask, and the milliseconds where they were counted."""
    ms = scores.get("milliseconds")
    return f"{100 * scores['accuracy']:.1f}{at}{scores['cost']:.3f}" + ("" if ms is None else f", {ms:.3g} ms")


def fastest(results):
    """The dense training step, and by which attention kernel."""
    kernel = min(results.dense_ms, key=results.dense_ms.get)
    return f"{results.dense_ms[kernel]:.0f} ms ({kernel})"


MEASURED = {  # of results
    "device": lambda results: results.device,
    "dtype": lambda results: results.dtype,
    "batch": lambda results: results.batch_size,
    "seed": lambda results: results.seed,
    "commit": lambda results: results.commit,
    "command": lambda results: results.command,
}
ACCURACY = {  # of runs that differ by seed alone, or of one evaluation
    "images": lambda runs: reported_on(runs[0]),
    "top-1": lambda runs: percent(runs) + counted(runs),
    "top-5": lambda runs: None if runs[0].accuracy_top5 is None else f"{100 * mean(runs, 'accuracy_top5'):.2f}",
    "cost": cost_spread,
    "GMACs": lambda runs: f"{mean(runs, 'gmacs'):.3g}",
    "checkpoint: top-1 at cost": before,
}
TRAINED = {
    "data": lambda runs: runs[0].dataset,
    "decides": lambda runs: model_name(runs[0]),
    "budget": lambda runs: budget(runs[0]) if runs[0].gates else ABSENT,
    **ACCURACY,
    "images seen": lambda runs: f"{mean(runs, 'images_seen'):,.0f}",
    "training": minutes,
    **of_run(MEASURED),
    "seed": lambda runs: ", ".join(ABSENT if run.seed is None else str(run.seed) for run in runs),
    "command": lambda runs: [run.command for run in runs],
}
CHOSEN = TRAINED | {"decides": lambda runs: f"{model_name(runs[0])}, on the patches it chooses"}
EVALUATED = {
    "model": lambda runs: short(runs[0].model),
    "data": lambda runs: runs[0].dataset,
    "decides": lambda runs: model_name(runs[0]),
    "budget": lambda runs: runs[0].budget if runs[0].gates else ABSENT,
    **ACCURACY,
    **of_run(MEASURED),
}
SEARCHED = {
    "model": lambda search: short(search.model),
    "data": lambda search: search.dataset,
    "images from": lambda search: search.images_from,
    "objectives": lambda search: search.objectives,
    "space": lambda search: search.space,
    "method": lambda search: search.method,
    "masks scored": lambda search: search.masks_scored,
    "minutes": lambda search: f"{search.seconds / 60:.1f}",
    "images chosen, reported on": lambda search: f"{search.images_to_choose_on}, {search.images_reported_on}",
    "no mask: top-1 at cost": lambda search: accuracy_at(search.unmasked),
    "picked: top-1 at cost": lambda search: accuracy_at(search.picked["reported"]),
    "left in the network": lambda search: f"{search.picked['reported']['layers']:.0%}",
    **MEASURED,
    "batch": lambda search: search.settings["batch_size"],
}
GAIN = {  # of a `Speed`
    "prepacked": lambda speed: "no" if not speed.prepacked else "with kernels" if speed.kernels else "yes",
    "speed-up": lambda speed: f"{speed.speedup:.2f}×" + compiled(speed),
    "of the MACs' promise": lambda speed: f"{speed.realised:.2f}",
    "against ours, no gates": lambda speed: f"{speed.gates_speedup:.2f}×",
    "peak MiB: dense; ours, no gates; packed": peaks,
}
SPEED = {  # of an evaluation and one `Speed` of its throughput
    "model": lambda results, speed: short(results.model),
    "cost": lambda results, speed: f"{speed.timed_cost:.3f}",
    "dense images/s": lambda results, speed: f"{speed.dense_images_per_second:.1f} ({speed.fastest})",
    "packed images/s": lambda results, speed: f"{speed.packed_images_per_second:.1f}",
    **of(GAIN, lambda results, speed: speed),
    "threads": lambda results, speed: results.threads,
    **of(MEASURED),
    "device": lambda results, speed: processor(results),
    "batch": lambda results, speed: speed.batch_size,
}
STEPS = {  # of a step_time measurement and one `Step`
    "model": lambda results, step: short(results.model),
    "gates or agent": lambda results, step: step.agent or step.gates,
    "patches": lambda results, step: f"{step.kept:.1f} of {step.patches}" if step.agent else "all",
    "cost": lambda results, step: f"{step.cost:.3f}",
    "dense step, the fastest of eager and SDPA": lambda results, step: fastest(results),
    "step": lambda results, step: f"{step.ms:.0f} ms" + (f" ({step.kernel})" if step.agent else ""),
    "of the dense time": lambda results, step: f"{step.time_ratio:.2f}",
    "of the least dense working memory": lambda results, step: f"{step.memory_ratio:.2f}",
    **of(MEASURED),
}
BENCHMARKED = {  # of a benchmark and one `RandomSpeed`
    "size": lambda results, speed: speed.size,
    "dtype": lambda results, speed: speed.dtype,
    "batch": lambda results, speed: speed.batch_size,
    "gates": lambda results, speed: speed.gates,
    "cost": lambda results, speed: f"{speed.timed_cost:.3f}",
    "dense ms": lambda results, speed: f"{speed.dense_ms[speed.fastest]:.1f} ({speed.fastest})",
    "packed ms": lambda results, speed: f"{speed.packed_ms:.1f}",
    **of(GAIN, lambda results, speed: speed),
    "rounds": lambda results, speed: speed.rounds,
    "threads": lambda results, speed: results.threads,
    "device": lambda results, speed: processor(results),
    **of({name: MEASURED[name] for name in ("seed", "commit", "command")}),
}
RUNTIMES = {  # of an evaluation, the name of a way to run the dense model, and its `Runtime`
    "model": lambda results, name, found: short(results.model),
    "dense model in": lambda results, name, found: name,
    "top-1": lambda results, name, found: (
        f"skipped: {found.skipped or ABSENT}" if found.accuracy is None else f"{100 * found.accuracy:.2f}"
    ),
    "images": lambda results, name, found: found.images,
    "same guess as dense": lambda results, name, found: None if found.agrees is None else f"{found.agrees:.1%}",
    "images/s by batch, and how much faster packed and the fastest dense model in PyTorch are": lambda results, name, found: (
        ", ".join(runtime_speed(speed, name) for speed in results.throughput if name in speed.other_ms) or ABSENT
    ),
    "threads": lambda results, name, found: results.threads,
    "device": lambda results, name, found: processor(results),
    "dtype of packed": lambda results, name, found: results.dtype,
    **{name: of(MEASURED)[name] for name in ("seed", "commit", "command")},
}


def runtime_speed(speed, name):
    """ "250.0 (8; packed is 1.60×, dense 0.80×)": images per second at a batch size."""
    ms, batch = speed.other_ms[name], speed.batch_size
    faster = f"packed is {ms / speed.packed_ms:.2f}×, dense {ms / speed.dense_ms[speed.fastest]:.2f}×"
    return f"{1e3 * batch / ms:.1f} ({batch}; {faster})"


def runtime_items(results):
    """The items of `RUNTIMES` of an evaluation; none if no runtime was asked for."""
    if not results.runtimes:
        return []
    timed = [name for speed in results.throughput for name in speed.other_ms]
    names = dict.fromkeys([*results.runtimes, *timed])
    return [(results, name, results.runtimes.get(name, Runtime())) for name in names]


def beyond_promise(*runs):
    """A paragraph for a speed table of which some rows gain more time than MACs; none where none does.

    Args:
        runs: lists of `Speed` objects, each of one evaluation or benchmark.
    """
    speeds = [speed for run in runs for speed in run]
    above = [speed for speed in speeds if speed.realised > 1]
    if not above:
        return []
    most = max(speed.realised for speed in above)
    parts = [
        f"{len(above)} of {len(speeds)} rows gain more than the MACs promise, {most:.2f} of it at most. MACs are "
        "no measure of time: softmax, normalisation and copies count none, and attention's time grows with the square of "
        "the tokens."
    ]
    opened = [speed for speed in above if getattr(speed, "gates", "").startswith("all open")]
    if opened:
        parts.append(f"{len(opened)} of them skip nothing (all gates open): that much is noise or the packed code.")
    longer = max((_larger_batches(run) for run in runs), default=1.0)
    if longer > 1:
        parts.append(
            f"Our own model without gates takes up to {longer:.2f} times as long for each image in a larger "
            "batch than in a smaller one: with fewer rows that loss is spared."
        )
    return [" ".join(parts)]


def _larger_batches(speeds):
    """How much longer an image takes our model without gates at a larger batch than at a smaller one, at most; 1 if no
    longer."""
    points = [
        (getattr(speed, "size", None), getattr(speed, "dtype", None), speed.batch_size, speed.dense_ms.get(OURS))
        for speed in speeds
    ]
    ratios = [
        (later / batch) / (earlier / smaller)
        for *one, smaller, earlier in points
        for *other, batch, later in points
        if one == other and smaller < batch and None not in (earlier, later)
    ]
    return max([1.0, *ratios])


def speed_table(speeds):
    """What the benchmark prints of its `Speed` objects: all that is measured, and all that follows from it."""
    frame = json_normalize([asdict(speed) for speed in speeds])
    names = {"_ms.": " ms: ", "_mib.": " MiB: ", "_": " "}
    for old, new in names.items():
        frame.columns = frame.columns.str.replace(old, new, regex=False)
    digits = frame.map(lambda value: f"{value:.{3 if abs(value) < 10 else 1}f}" if isinstance(value, float) else value)
    return table(digits)
