"""Tables of models, and of comparisons of agents, beside what they have to beat: the dense model, the same at random."""

from pandas import isna

from .comparison import commits, summarise
from .markdown import ABSENT
from .names import cost_spread, has_gates, merges, model_name, place, reported_on, short
from .results import Training
from .rivals import counted, mean, percent, same_images, same_start, trained_alike


INTRODUCTION = (
    "Fewer computations for each image. *Tuned* means by the same recipe: from the same checkpoint, on as many images. "
    "Top-1 is in per cent, ± its deviation over seeds, with the mean cost where that is not 1; the deviation and the ends "
    "of the cost are over images. The speed-up is over the fastest dense model there is here, and in brackets what it "
    "is of the one that the cost of the timed images promises. –: not run. The command of each number stands beside its row in "
    "the tables above."
)


SAME_TIME = 0.02  # of the dense model's: smaller differences are noise
OURS = "agentvit-plus"
LEARNING = (
    "credit",
    "learn_every",
    "learning_rate",
    "hidden",
    "entropy_weight",
    "reward",
)  # options of how `OURS` learns
BEST = "the best other one in no more time"
COMPARED = (
    "Fewer patches in training, all of them afterwards. Top-1 in per cent, ± its deviation over seeds, and in which share "
    "of the time of the dense model. *Without learning*: the same agent, which draws patches by their novelty alone "
    "(credit=none). *The same at random*: as many patches by the same schedule, merged or not alike. *The "
    "best other one* is the most accurate of all that took no more time, whatever chooses its patches, the dense model in "
    "fewer steps among them. –: not run."
)


def beside_rows(trainings, evaluations):
    """A row for each training of gates that are not random, and for each other model that was timed.

    Dense models and gates that a training kept have none. What a row lacks is "–"; no row is left out for it.

    Args:
        trainings: lists of results that differ by seed alone (`rivals.by_seed`). evaluations: results.
    """
    timed = [results for results in evaluations if results.throughput and not results.is_dense()]
    found = []
    for runs in trainings:
        if not _is_shown(runs[0]):
            continue
        own = [results for results in timed if _is_of(results, runs)]
        timed = [results for results in timed if results not in own]
        found.append(_row(runs, own, *rivals(runs, trainings), given(runs, trainings, own)))
    others = {}
    for results in timed:  # one model, maybe in several precisions
        others.setdefault((results.model, results.budget, results.dataset), []).append(results)
    return found + [_row(own[:1], own, None, None, None, given(own[:1], [], own)) for own in others.values()]


def rivals(runs, trainings):
    """(dense, random, random with merging): lists of results that differ by seed alone, or None.

    Of several that were trained alike the most accurate dense one, and the random ones nearest in cost.
    """
    dense, random = trained_alike(runs, trainings)
    apart = [[others for others in random if merges(others[0]) == merging] for merging in (False, True)]

    def distance(others):
        return abs(mean(others, "cost") - mean(runs, "cost"))

    best = max(dense, key=lambda others: mean(others, "accuracy"), default=None)
    return best, *(min(found, key=distance, default=None) for found in apart)


def given(runs, trainings, evaluations):
    """Top-1 of the dense checkpoint before any tuning on the same images, by whatever run there is; None without any."""
    alike = [others for others in trainings if same_start(others[0], runs[0])]
    for results in [*runs, *(results for others in alike for results in others), *evaluations]:
        if results.dense and same_images(results, runs[0]):
            return results.dense.accuracy
    return None


def _is_shown(training):
    shown = not training.is_dense() and not has_gates(training, "random")
    return shown and training.settings["model"]["gates"] != "keep" and not training.agent


def _is_of(evaluation, runs):
    """Whether an evaluation is of the model that one of these runs has left."""
    folders = [run.option("output_dir") for run in runs]
    same = evaluation.gates == runs[0].gates and evaluation.dataset == runs[0].dataset
    return same and short(evaluation.model) in {short(folder) for folder in folders if folder}


def _row(runs, timed, dense, random, merged, before):
    first = runs[0]
    sources = [results for others in (runs, dense, random, merged) if others for results in others] + timed
    return {
        "data": f"{first.dataset}: {reported_on(first)}",
        "decides": model_name(first),
        "images seen": f"{mean(runs, 'images_seen'):,.0f}" if isinstance(first, Training) else ABSENT,
        "dense, as given": ABSENT if before is None else f"{100 * before:.2f}",
        "dense, tuned": _accuracy(dense),
        "this model": _accuracy(runs),
        "its cost": cost_spread(runs),
        "random, tuned": _accuracy(random),
        "random + merge, tuned": _accuracy(merged),
        "speed-up": "<br>".join(_speed(results) for results in timed) or ABSENT,
        "device": "<br>".join(dict.fromkeys(place(one) for one in [first, *timed])),
        "commit": commits(sources),
    }


def _accuracy(runs):
    """Top-1, at which cost, over how many seeds."""
    if not runs:
        return ABSENT
    cost = f"{mean(runs, 'cost'):.3f}"
    return percent(runs) + ("" if cost == "1.000" else f" at {cost}") + counted(runs)


def _speed(results):
    """ "float32: batch 1 1.10× (0.55 at cost 0.48), batch 8 1.69× (0.85 at cost 0.50)": of the timed images."""
    rows = (
        f"batch {speed.batch_size} {speed.speedup:.2f}× ({speed.realised:.2f} at cost {speed.timed_cost:.2f})"
        for speed in results.throughput
    )
    return f"{results.dtype}: {', '.join(rows)}"


# ---------------------------------------------------------------------------------------------- agents


def agent_rows(comparisons):
    """A row for each variant of `agentvit-plus`; what it lacks is "–", and seeds are counted where they are fewer.

    The best other one is chosen on the images that are reported, which can only favour it.
    """
    return [row for results in comparisons for row in _comparison_rows(results)]


def _comparison_rows(results):
    summary = summarise(results.runs)
    first = {run.variant: run for run in reversed(results.runs)}
    variants, names = list(summary.index), {variant: variant.partition(":")[0] for variant in summary.index}
    found = []
    learned = [variant for variant in variants if names[variant] == OURS and _credit(first[variant]) != "none"]
    for ours in learned:
        as_fast = [other for other in variants if other not in learned and other != "none"]
        as_fast = [other for other in as_fast if _no_slower(summary.loc[other], summary.loc[ours])]
        alike = [other for other in variants if other not in learned and _facts(first[other]) == _facts(first[ours])]
        at_random = [other for other in alike if names[other] in ("random", "progressive")]
        shown = {
            "dense": "none" if "none" in variants else None,
            OURS: ours,
            "without learning": next((other for other in alike if _same_agent(first[other], first[ours])), None),
            "the same at random": next(iter(at_random), None),
            "dense in fewer steps": _best([other for other in as_fast if names[other] == "none"], summary),
            BEST: _best(as_fast, summary),
        }
        runs = [run for run in results.runs if run.variant in shown.values()]
        most = summary.seeds[ours]
        found.append(
            {
                "data": f"{results.dataset}: {reported_on(results)}; {results.steps} steps of {results.batch_size} images",
                "seeds": most,
                **{heading: _variant(variant, summary, most, heading == BEST) for heading, variant in shown.items()},
                "device": place(results),
                "commit": commits(runs),
            }
        )
    return found


def _credit(run):
    """What an `agentvit-plus` learned from; the option is younger than the first runs."""
    return run.agent.options.get("credit", "pairs") if run.agent else None


def _same_agent(one, other):
    """Whether two `agentvit-plus` differ in nothing but what and how they learn."""
    if one.agent is None or one.agent.name != OURS:
        return False
    options = [
        {name: value for name, value in run.agent.options.items() if name not in LEARNING} for run in (one, other)
    ]
    return options[0] == options[1]


def _facts(run):
    """What a choice without learning has to share with a learned one: patches, schedule, merging, steps."""
    options = run.agent.options if run.agent else {}
    desired = run.agent.n_patch_desired if run.agent else None
    return desired, options.get("return_fraction"), options.get("merge"), run.curve[-1]["step"]


def _no_slower(other, ours):
    """By shares of the dense time, which machines with other work beside them spoil less; in seconds where it lacks."""
    if isna(other.time_share) or isna(ours.time_share):
        return other.train_seconds <= ours.train_seconds * (1 + SAME_TIME)
    return other.time_share <= ours.time_share + SAME_TIME


def _best(variants, summary):
    return max(variants, key=lambda variant: summary.accuracy[variant], default=None)


def _variant(variant, summary, most, named):
    """ "random: 81.52 ± 0.32 in 0.61 (merge=true), 2 seeds"; seeds where there are others than ours has."""
    if variant is None:
        return ABSENT
    row, (name, _, options) = summary.loc[variant], variant.partition(":")
    deviation = "" if isna(row.accuracy_deviation) else f" ± {100 * row.accuracy_deviation:.2f}"
    share = "" if isna(row.time_share) or variant == "none" else f" in {row.time_share:.2f}"
    written = f"{100 * row.accuracy:.2f}{deviation}{share}"
    written = f"{'dense' if name == 'none' else name}: {written}" if named else written
    written += f" ({options.replace(',', ', ')})" if options else ""
    return written + ("" if row.seeds == most else f", {row.seeds:.0f} seed{'s' if row.seeds > 1 else ''}")
