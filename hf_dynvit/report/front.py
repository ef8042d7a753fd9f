"""README's first table: each model beside the dense model, given and tuned, and beside random decisions, tuned alike."""

from .names import cost_spread, decides, has_gates, masked, merges, reported_on, short
from .rivals import mean, percent, same_images, same_start, trained_alike


ABSENT = "–"
INTRODUCTION = (
    "Fewer computations for each image. *Tuned* means by the same recipe: from the same checkpoint, on as many images. "
    "Top-1 is in per cent, ± its deviation over seeds, with the mean cost where that is not 1; the deviation and the ends "
    "of the cost are over images. The speed-up is over the fastest dense model there is here, and in brackets what it "
    "is of the one that the cost of the timed images promises. –: not run."
)


def front_rows(trainings, evaluations):
    """A row for each training of gates that are not random, and for each other model that was timed.

    Dense models and gates that a training kept have none. What a row lacks is "–"; no row is left out for it.

    Args:
        trainings: lists of results that differ by seed alone (`report_seeds.by_seed`). evaluations: results.
    """
    timed = [
        results for results in evaluations if results["throughput"] and (results["gates"] or results["layer_mask"])
    ]
    rows = []
    for runs in trainings:
        if not _is_shown(runs[0]):
            continue
        own = [results for results in timed if _is_of(results, runs)]
        timed = [results for results in timed if not _is_of(results, runs)]
        rows.append(_row(runs, own, *rivals(runs, trainings), given(runs, trainings, own)))
    others = {}
    for results in timed:  # one model, maybe in several precisions
        others.setdefault((results["model"], results["budget"], results["dataset"]), []).append(results)
    return rows + [_row(own[:1], own, None, None, None, given(own[:1], [], own)) for own in others.values()]


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
        if results.get("dense") and same_images(results, runs[0]):
            return results["dense"]["accuracy"]
    return None


def _is_shown(results):
    gated = results["gates"] and not has_gates(results, "random")
    return gated and results["settings"]["model"]["gates"] != "keep" and not results["agent"]


def _is_of(evaluation, runs):
    """Whether an evaluation is of the model that one of these runs has left."""
    folders = [results["settings"]["training"].get("output_dir") for results in runs]
    same = evaluation["gates"] == runs[0]["gates"] and evaluation["dataset"] == runs[0]["dataset"]
    return same and short(evaluation["model"]) in {short(folder) for folder in folders if folder}


def _row(runs, timed, dense, random, merged, before):
    first = runs[0]
    sources = [results for others in (runs, dense, random, merged) if others for results in others] + timed
    places = dict.fromkeys(f"{one['device']}, {one['threads']} threads, {one['dtype']}" for one in [first, *timed])
    return {
        "data": f"{first['dataset']}: {reported_on(first)}",
        "decides": decides(first) + masked(first),
        "images seen": f"{mean(runs, 'images_seen'):,.0f}" if "images_seen" in first else ABSENT,
        "dense, as given": ABSENT if before is None else f"{100 * before:.2f}",
        "dense, tuned": _accuracy(dense),
        "this model": _accuracy(runs),
        "its cost": cost_spread(runs),
        "random, tuned": _accuracy(random),
        "random + merge, tuned": _accuracy(merged),
        "speed-up": "<br>".join(_speed(results) for results in timed) or ABSENT,
        "device": "<br>".join(places),
        "commit": " and ".join(dict.fromkeys(str(results["commit"]) for results in sources)),
        "command": [results["command"] for results in sources],
    }


def _accuracy(runs):
    """Top-1, at which cost, over how many seeds."""
    if not runs:
        return ABSENT
    cost = f"{mean(runs, 'cost'):.3f}"
    at = "" if cost == "1.000" else f" at {cost}"
    return percent(runs) + at + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _speed(results):
    """ "float32: batch 1 1.10× (0.55 at cost 0.48), batch 8 1.69× (0.85 at cost 0.50)": of the timed images."""
    rows = (
        f"batch {row['batch_size']} {row['speedup']:.2f}× ({row['realised']:.2f} at cost {row['timed_cost']:.2f})"
        for row in results["throughput"]
    )
    return f"{results['dtype']}: {', '.join(rows)}"
