"""Comparisons of patch agents that were run in parts: which parts fit together, and all their runs as one.

A comparison is the content of a compare.json: what all runs share, and "runs", a dict for each variant and seed.
"""

KIND = "comparison of agents"
# What a run chooses for itself; everything else of a comparison is the same for all of its runs.
FREE = ("output_dir", "run_name", "seed", "agent", "agent_options")
SHARED = ("kind", "dataset", "steps", "batch_size", "evaluations", "device", "dtype", "threads", "versions")
FOUND = ("split", "split_files", "images", "curves_on", "curve_images")  # known once the data is loaded


def check_same(parts):
    """Refuse comparisons whose runs cannot be compared with each other.

    Args:
        parts: name -> comparison; the names are for the error.

    Raises:
        ValueError: names the first setting that differs, and both values.
    """
    (name, first), *others = parts.items()
    wanted = _settings(first)
    for other, content in others:
        settings = _settings(content)
        for key in sorted(wanted.keys() | settings.keys()):
            values = wanted.get(key), settings.get(key)
            if values[0] != values[1] and not (key in FOUND and None in values):
                raise ValueError(
                    f"{name} and {other} were run with different settings: {key} is {values[0]!r} and {values[1]!r}"
                )


def merge(parts):
    """One comparison with the runs of all, variants in the order they come, seeds in theirs.

    Args:
        parts: name -> comparison.

    Raises:
        ValueError: no parts, one that is no comparison or differs in a setting, or a run that two of them hold.
    """
    if not parts:
        raise ValueError("give comparisons to merge, got none")
    for name, content in parts.items():
        if content.get("kind") != KIND:
            raise ValueError(f"{name} is no comparison of agents: its kind is {content.get('kind')!r}")
    check_same(parts)
    runs = {}
    for name, content in parts.items():
        for run in content["runs"]:
            key = run["variant"], run["seed"]
            if key in runs:
                raise ValueError(f"{name}: an earlier part holds variant {key[0]!r} with seed {key[1]} as well")
            runs[key] = run
    variants = list(dict.fromkeys(variant for variant, _ in runs))
    ordered = sorted(runs, key=lambda key: (variants.index(key[0]), key[1]))
    return {**next(iter(parts.values())), "runs": [runs[key] for key in ordered]}


def _settings(content):
    """Name -> value of all that the runs share."""
    values = {name: content.get(name) for name in (*SHARED, *FOUND)}
    for group, settings in content["settings"].items():
        values |= {f"{group}.{name}": value for name, value in settings.items() if name not in FREE}
    return values
