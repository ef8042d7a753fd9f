"""What results are called in tables, in words: rules and learned gates are told apart by their weights."""

from pathlib import PurePosixPath


WORDS = {"sublayer": "sub-layer"}
ALIKE = "alike"  # looks of a cascade of which none counts more than another
SAME = 0.0005  # deviations that three digits do not show
SCORES = {
    "cls_attention": "[CLS] attention",
    "cls_attention_value": "[CLS] attention times values",
    "random": "random tokens",
}
MERGES = {"tome": "ToMe", "pitome": "PiToMe"}  # as many in every image
AMOUNTS = ("keep", "top", "mass", "samples")  # of a gate `token`
UNITS = {"head": "heads", "sublayer": "sub-layers", "block": "blocks"}  # of random gates; patches go without saying


def decides(facts):
    """ "dense", "rule: novelty + merge", "rule: random blocks", "learned patch + sub-layer gates (adavit)" and so on.

    A gate counts as learned if its score weights differ from their fresh values. Of those that do not, a patch gate with
    `novelty` is a rule; any other one decides alike for all images ("fixed").

    Args:
        facts: with `gates`, `preset` and `learned` as `gate_facts` gives them.
    """
    parts, bypasses = {}, []  # kind of decision -> [names], and whether it merges
    for entry in facts["gates"] or []:
        kind, name = _kind(entry, facts["learned"])
        names, merges = parts.get(kind, ([], False))
        if entry.get("bypass", "none") != "none":
            bypasses.append(f" + {entry['bypass'].replace('_', '-')} bypass")
        parts[kind] = (list(dict.fromkeys([*names, name])), merges or _merges(entry))
    if not parts:
        return "dense"
    words = {"rule": "rule: {}", "learned": "learned {} gates", "fixed": "fixed {} gates"}
    found = [
        words[kind].format(" + ".join(parts[kind][0])) + (" + merge" if parts[kind][1] else "")
        for kind in words
        if kind in parts
    ]
    return "; ".join(found) + "".join(dict.fromkeys(bypasses)) + (f" ({facts['preset']})" if facts["preset"] else "")


def _merges(entry):
    return bool(entry.get("merge")) or entry.get("rest") == "merge"


def _kind(entry, learned):
    gate = entry["gate"]
    if gate == "random":
        unit = UNITS.get(entry.get("unit", "patch"))
        return "rule", f"random {unit}" if unit else "random"
    if learned.get(gate):
        return "learned", WORDS.get(gate, gate) + (" (as many in every image)" if _as_many(entry) else "")
    if gate == "merge":
        return "rule", "merging by similarity" + (", as many in every image" if _as_many(entry) else "")
    if gate == "token":
        return _token_kind(entry)
    if gate in MERGES:
        return "rule", f"{MERGES[gate]}, {entry.get('merged', 8)} a layer"
    return ("rule", "novelty") if entry.get("novelty") else ("fixed", WORDS.get(gate, gate))


def _as_many(entry):
    return entry["gate"] == "merge" and entry.get("merged") is not None


def _token_kind(entry):
    """Kind and name of a gate `token` that has learned nothing."""
    score = entry.get("score", "cls_attention")
    if score in ("linear", "predictor"):
        return "fixed", "token"
    amounts = [f"{name} {entry[name]}" for name in AMOUNTS if entry.get(name) is not None]
    amounts += ["by rank"] if entry.get("by_rank") else []
    rests = [entry["rest"]] if entry.get("rest") in ("fuse", "pass") else []
    return "rule", ", ".join([SCORES.get(score, score.replace("_", " ")), *amounts, *rests])


def model_name(results):
    """What a model decides, the mask it acts in, and the agent that its training had."""
    return decides(vars(results)) + seen(results) + masked(results) + agent_name(getattr(results, "agent", None))


def seen(results):
    """The size that images are resized to, or the looks of a cascade, and the last layer, as an addition to a name."""
    last = ", last layer as it is read" if getattr(results, "last_layer", None) else ""
    if results.cascade:
        return f", cascade of {looks_text(results.cascade)}{last}"
    return (f" at {results.resolution} px" if results.resolution else "") + last


def looks_text(cascade):
    """ "160 px at 0.2, 224 px at 0.5 (1 : 4)": the size of images and the cost of each look, and what they count if not alike."""
    sizes = [f"{look['resolution']} px" if look.get("resolution") else "all pixels" for look in cascade]
    counts = f" ({counts_text(cascade)})" if counts_text(cascade) != ALIKE else ""
    return ", ".join(f"{size} at {look['budget']:g}" for size, look in zip(sizes, cascade, strict=True)) + counts


def counts_text(cascade):
    """ "1 : 4": what each look counts in the mean, or `ALIKE`."""
    weights = [look.get("weight", 1.0) for look in cascade]
    return " : ".join(f"{weight:g}" for weight in weights) if len(set(weights)) > 1 else ALIKE


def masked(results):
    """What a mask leaves, as an addition to a name."""
    mask = results.layer_mask
    return f", mask of {sum(map(sum, mask))} / {2 * len(mask)} sub-layers" if mask else ""


def agent_name(agent):
    """The agent that a training had, as an addition to a name."""
    if agent is None:
        return ""
    return f", agent {agent.name}, {agent.n_patch_desired} of {agent.patches} patches" + random_masks(agent.epsilon)


def random_masks(epsilon):
    """How many of its masks an agent drew at random, as an addition to its name; None: it does not explore so."""
    return "" if epsilon is None else f" ({100 * epsilon:.0f} % of its masks random)"


def has_gates(results, *names):
    """Whether there are gates, all of them of these names."""
    return bool(results.gates) and all(entry["gate"] in names for entry in results.gates)


def units(results):
    """What the gates decide on: a set of "patch", "head" and "block", which stands for sub-layers too."""
    named = (entry.get("unit", "patch") if entry["gate"] == "random" else entry["gate"] for entry in results.gates)
    kinds = {"sublayer": "block", "block": "block", "head": "head"}
    return {kinds.get(unit, "patch") for unit in named}


def merges(results):
    """Whether what leaves is merged into what stays."""
    return any(_merges(entry) or entry["gate"] in ("merge", *MERGES) for entry in results.gates or [])


def processor(results):
    """The device with its instructions, where they are known."""
    return f"{results.device} ({results.instructions})" if results.instructions else results.device


def place(results):
    """The device, its threads and the dtype."""
    return f"{results.device}, {results.threads} threads, {results.dtype}"


def reported_on(results):
    """ "10,000 (validation = test.parquet)": how many images, of which split, and which files that is, or what part of them."""
    files = ", ".join(results.split_files)
    middle = f", the middle {results.crop_pct:g} of them" if results.crop_pct else ""
    return f"{results.images:,} ({results.split}{' = ' if files else ''}{files}{middle})"


def cost_spread(runs):
    """ "0.501 ± 0.043 (0.31–0.66)": mean over images, its deviation and ends; the mean alone where no image differs.

    Of runs that differ by seed the means of mean and deviation, and the ends of all.
    """
    cost, deviation = (sum(getattr(run, name) for run in runs) / len(runs) for name in ("cost", "cost_std"))
    if deviation < SAME:
        return f"{cost:.3f}"
    least, most = min(run.cost_min for run in runs), max(run.cost_max for run in runs)
    return f"{cost:.3f} ± {deviation:.3f} ({least:.2f}–{most:.2f})"


def short(path):
    """An absolute or upward path by its last two names; everything else as it is."""
    if not path.startswith(("/", "../")):
        return path
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return "/".join(parts[-2:])
