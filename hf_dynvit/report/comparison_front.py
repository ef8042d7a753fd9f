"""What README's first page says of comparisons of patch agents: ours, its unlearned twin, and what else the time buys."""

from .comparison_tables import ABSENT, summarise
from .names import reported_on


SAME_TIME = 0.02  # of the dense model's: smaller differences are noise
OURS = "agentvit-plus"
BEST = "the best other one in no more time"
INTRODUCTION = (
    "Fewer patches in training, all of them afterwards. Top-1 in per cent, ± its deviation over seeds, and in which share "
    "of the time of the dense model. *The same at random*: as many patches by the same schedule, merged or not alike. *The "
    "best other one* is the most accurate of all that took no more time, whatever chooses its patches, the dense model in "
    "fewer steps among them. –: not run."
)


def front_comparison_rows(comparisons):
    """A row for each variant of `agentvit-plus`; what it lacks is "–", and seeds are counted where they are fewer.

    The best other one is chosen on the images that are reported, which can only favour it.
    """
    return [row for results in comparisons for row in _front_rows(results)]


def _front_rows(results):
    summary = summarise(results["runs"])
    facts = {run["variant"]: _facts(run) for run in reversed(results["runs"])}
    rows = []
    for ours in summary:
        if _name(ours) != OURS:
            continue
        as_fast = [other for other in summary if _name(other) != OURS and other != "none"]
        as_fast = [other for other in as_fast if _no_slower(summary[other], summary[ours])]
        at_random = [other for other in summary if _name(other) in ("random", "progressive")]
        twin = next((other for other in at_random if facts[other] == facts[ours]), None)
        shown = {
            "dense": "none" if "none" in summary else None,
            OURS: ours,
            "the same at random": twin,
            "dense in fewer steps": _best([other for other in as_fast if _name(other) == "none"], summary),
            BEST: _best(as_fast, summary),
        }
        runs = [run for run in results["runs"] if run["variant"] in shown.values()]
        most = summary[ours]["seeds"]
        rows.append(
            {
                "data": f"{results['dataset']}: {reported_on(results)}; {results['steps']} steps of "
                f"{results['batch_size']} images",
                "seeds": most,
                **{heading: _cell(variant, summary, most, heading == BEST) for heading, variant in shown.items()},
                "device": f"{results['device']}, {results['threads']} threads, {results['dtype']}",
                "commit": " and ".join(dict.fromkeys(str(run["commit"]) for run in runs)),
                "command": [run["command"] for run in runs],
            }
        )
    return rows


def _name(variant):
    return variant.partition(":")[0]


def _facts(run):
    """What a choice at random has to share with a learned one: patches, schedule, merging, steps."""
    agent = run["agent"] or {"n_patch_desired": None, "options": {}}
    options = (agent["options"].get(name) for name in ("return_fraction", "merge"))
    return agent["n_patch_desired"], *options, run["curve"][-1]["step"]


def _no_slower(other, ours):
    """By shares of the dense time, which machines with other work beside them spoil less; in seconds where it lacks."""
    if None in (other["time_share"], ours["time_share"]):
        return other["train_seconds"] <= ours["train_seconds"] * (1 + SAME_TIME)
    return other["time_share"] <= ours["time_share"] + SAME_TIME


def _best(variants, summary):
    return max(variants, key=lambda variant: summary[variant]["accuracy"], default=None)


def _cell(variant, summary, most, named):
    """ "random: 81.52 ± 0.32 in 0.61 (merge=true), 2 seeds"; seeds where there are others than ours has."""
    if variant is None:
        return ABSENT
    row, (name, _, options) = summary[variant], variant.partition(":")
    deviation = "" if row["accuracy_deviation"] is None else f" ± {100 * row['accuracy_deviation']:.2f}"
    share = "" if row["time_share"] is None or variant == "none" else f" in {row['time_share']:.2f}"
    written = f"{100 * row['accuracy']:.2f}{deviation}{share}"
    written = f"{'dense' if name == 'none' else name}: {written}" if named else written
    written += f" ({options.replace(',', ', ')})" if options else ""
    return written + ("" if row["seeds"] == most else f", {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}")
