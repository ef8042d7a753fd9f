"""What README's first table says of comparisons of patch agents."""

from .comparison_report import ABSENT, summarise


SAME_TIME = 0.02  # of the dense model's: smaller differences are noise


def front_comparison_rows(comparisons):
    """What a reader wants first of each: dense, `agentvit-plus`, and what else the same time buys.

    That is the best that drops patches at random, and dense in fewer steps if there. Only variants with the seeds of
    the dense model count; a comparison without `agentvit-plus`, or anything at random that was as fast, has no row.
    """
    rows = [row for results in comparisons for row in _front_rows(results)]
    empty = {name for name in rows[0] if all(row[name] == ABSENT for row in rows)} if rows else set()
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _front_rows(results):
    summary, seeds, rows = summarise(results["runs"]), {}, []
    for run in results["runs"]:
        seeds.setdefault(run["variant"], set()).add(run["seed"])
    fair = [variant for variant in summary if variant != "none" and seeds[variant] == seeds.get("none")]
    for plus in _named("agentvit-plus", fair):
        as_fast = [v for v in fair if summary[v]["time_share"] <= summary[plus]["time_share"] + SAME_TIME]
        random, shorter = (
            max(_named(name, as_fast), key=lambda variant: summary[variant]["accuracy"], default=None)
            for name in ("random", "none")
        )
        if random is None:
            continue
        shown = ("none", plus, random, shorter)
        runs = [run for run in results["runs"] if run["variant"] in shown]
        rows.append(
            {
                "data": f"{results['dataset']}, {results['steps']} steps of {results['batch_size']} images",
                "top-1, trained on all patches": _with_deviation(summary["none"]),
                "by agentvit-plus, in which share of the time": _in_time(plus, summary),
                "best at random in no more": _in_time(random, summary),
                "dense in fewer steps": _in_time(shorter, summary) if shorter else ABSENT,
                "device": f"{results['device']}, {results['threads']} threads, {results['dtype']}",
                "seeds": ", ".join(str(seed) for seed in sorted(seeds["none"])),
                "commit": " and ".join(dict.fromkeys(str(run["commit"]) for run in runs)),
                "command": [run["command"] for run in runs],
            }
        )
    return rows


def _named(name, variants):
    """Those of an agent, whatever their options."""
    return [variant for variant in variants if variant.partition(":")[0] == name]


def _in_time(variant, summary):
    """What a variant reaches, in which share of dense's time, and its options."""
    options = variant.partition(":")[2].replace(",", ", ")
    written = f"{_with_deviation(summary[variant])} in {summary[variant]['time_share']:.2f}"
    return written + (f" ({options})" if options else "")


def _with_deviation(row):
    """Mean top-1 in per cent, and its sample standard deviation if there are several seeds."""
    deviation = row["accuracy_deviation"]
    return f"{100 * row['accuracy']:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
