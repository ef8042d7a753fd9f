"""Write the results tables of recipes/README.md: python recipes/report.py results.json ... evaluation.json ...

Each file is one that train.py, evaluate.py, search.py, step_time.py, compare_agents.py, merge_comparisons.py or
`python -m hf_dynvit.benchmark --json` wrote; all numbers of the tables come from them.
"""

import json
import re
import shlex
import sys
from pathlib import Path, PurePosixPath


# This folder holds an evaluate.py, which must not hide the library of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

from hf_dynvit import comparison, comparison_report


README = Path(__file__).resolve().parent / "README.md"
START, END = "<!-- results:start -->", "<!-- results:end -->"
KINDS = ("training", "evaluation", "search", "step_time", comparison.KIND)
PROVENANCE = ("device", "dtype", "batch", "seed", "commit", "command")


def main(argv=None):
    """`[--readme FILE] JSON ...`; returns the text between the markers."""
    argv = list(sys.argv[1:] if argv is None else argv)
    readme = README
    if "--readme" in argv:
        at = argv.index("--readme")
        readme = Path(argv[at + 1])
        del argv[at : at + 2]
    if not argv:
        raise ValueError("give the JSON files of train.py and evaluate.py")
    text = readme.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme} must contain {START} and {END} once each")
    tables = render([read(path) for path in argv])
    before, after = text.split(START)[0], text.split(END)[1]
    readme.write_text(f"{before}{START}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
    return tables


def read(path):
    """One JSON file; raises ValueError if none of the scripts wrote it."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(results, dict) and results.get("kind") in KINDS:
        return results
    if isinstance(results, dict) and all("realised" in row for row in results.get("rows") or [{}]):
        return {**results, "kind": "benchmark"}
    raise ValueError(
        f"{path} was written neither by train.py nor evaluate.py nor search.py nor step_time.py nor compare_agents.py "
        "nor the benchmark"
    )


def render(all_results):
    """The tables as Markdown: trainings, evaluations, speed."""
    trainings = [results for results in all_results if results["kind"] == "training"]
    evaluations = [results for results in all_results if results["kind"] == "evaluation"]
    parts = []
    if trainings:
        parts += ["### Trained", table([training_row(results) for results in trainings])]
    if evaluations:
        parts += ["### Evaluated", table([evaluation_row(results) for results in evaluations])]
    searches = [search_row(results) for results in all_results if results["kind"] == "search"]
    if searches:
        parts += ["### Searched", table(searches)]
    speeds = [speed_row(results, row) for results in evaluations for row in results["throughput"]]
    if speeds:
        parts += ["### Speed", table(speeds)]
    steps = [row for results in all_results if results["kind"] == "step_time" for row in step_rows(results)]
    if steps:
        parts += ["### Training steps", table(steps)]
    compared = [results for results in all_results if results["kind"] == comparison.KIND]
    if compared:
        parts += ["### Agents compared", *(comparison_report.markdown(results, command) for results in compared)]
    for benchmark in (results for results in all_results if results["kind"] == "benchmark"):
        parts += ["### Speed at a given cost, random decisions", circumstances(benchmark)]
        parts += [table([benchmark_row(row) for row in benchmark["rows"]])]
    return "\n\n".join(parts)


def training_row(results):
    model = results["settings"]["model"]
    return {
        "data": results["dataset"],
        "gates": gates_name(model["gates"]),
        "budget": "–" if model["gates"] == "none" else model["budget"],
        **accuracy_columns(results),
        "images seen": f"{results['images_seen']:,}",
        "training": f"{results['train_seconds'] / 60:.1f} min" + (" (resumed)" if results["resumed"] else ""),
        **provenance(results, results["batch_size"]),
    }


def evaluation_row(results):
    return {
        "model": short(results["model"]),
        "data": results["dataset"],
        "gates": " + ".join(dict.fromkeys(gate["gate"] for gate in results["gates"])) if results["gates"] else "none",
        "budget": results["budget"] if results["gates"] else "–",
        **accuracy_columns(results),
        **provenance(results, results["batch_size"]),
    }


def search_row(results):
    picked, without = results["picked"]["reported"], results["unmasked"]
    return {
        "model": short(results["model"]),
        "data": f"{results['dataset']} ({results['split']})",
        "objectives": results["objectives"],
        "space": results["space"],
        "method": results["method"],
        "masks scored": results["masks_scored"],
        "minutes": f"{results['seconds'] / 60:.1f}",
        "images chosen, reported on": f"{results['images_to_choose_on']}, {results['images_reported_on']}",
        "no mask: top-1 at cost": f"{100 * without['accuracy']:.1f} at {without['cost']:.3f}",
        "picked: top-1 at cost": f"{100 * picked['accuracy']:.1f} at {picked['cost']:.3f}",
        "left in the network": f"{picked['layers']:.0%}",
        **provenance(results, results["settings"]["batch_size"]),
    }


def speed_row(results, row):
    kernel = min(row["dense_ms"], key=row["dense_ms"].get)
    return {
        "model": short(results["model"]),
        "cost": f"{row['timed_cost']:.3f}",
        "dense images/s": f"{row['dense_images_per_second']:.1f} ({kernel})",
        "packed images/s": f"{row['packed_images_per_second']:.1f}",
        "speed-up": f"{row['speedup']:.2f}×",
        "of the MACs' promise": f"{row['realised']:.2f}",
        "peak MiB, dense and packed": peaks(row, "dense", "packed"),
        "threads": results["threads"],
        **provenance(results, row["batch_size"]),
    }


def benchmark_row(row):
    kernel = min(row["dense_ms"], key=row["dense_ms"].get)
    return {
        "size": row["size"],
        "dtype": row["dtype"],
        "batch": row["batch"],
        "gates": row["gates"],
        "cost": f"{row['cost']:.3f}",
        "dense ms": f"{row['dense_ms'][kernel]:.1f} ({kernel})",
        "packed ms": f"{row['packed_ms']:.1f}",
        "speed-up": f"{row['speedup']:.2f}×",
        "of the MACs' promise": f"{row['realised']:.2f}",
        "peak MiB, dense and packed": peaks(row, kernel, row["gates"]),
        "rounds": row["rounds"],
    }


def step_rows(results):
    """A row for the gates, if they were timed, and for each agent."""
    kernel = min(results["dense_ms"], key=results["dense_ms"].get)
    measured = []
    if "packed_ms" in results:
        measured.append((results["gates"], "all", results, f"{results['packed_ms']:.0f} ms"))
    for row in results.get("agents", []):  # files of earlier versions have none
        patches = f"{row['kept']:.1f} of {row['patches']}"
        measured.append((row["agent"], patches, row, f"{row['ms']:.0f} ms ({row['kernel']})"))
    return [
        {
            "model": short(results["model"]),
            "gates or agent": name,
            "patches": patches,
            "cost": f"{row['cost']:.3f}",
            "dense step": f"{results['dense_ms'][kernel]:.0f} ms ({kernel})",
            "step": step,
            "of the dense time": f"{row['time_ratio']:.2f}",
            "of the dense working memory": f"{row['memory_ratio']:.2f}",
            **provenance(results, results["batch_size"]),
        }
        for name, patches, row, step in measured
    ]


def peaks(row, dense, packed):
    """Working memory of both; files of earlier versions have none."""
    found = row.get("peak_mib")
    return f"{found[dense]:.1f}, {found[packed]:.1f}" if found else "–"


def circumstances(results):
    """A benchmark's rows share all but what their columns say."""
    return (
        f"On {results['device']}, {results['threads']} threads, seed {results['seed']}, commit {results['commit']}: "
        f"`{command(results['command'])}`"
    )


def accuracy_columns(results):
    dense = results.get("dense")
    return {
        "images": f"{results['images']:,} ({results['split']})",
        "top-1": f"{100 * results['accuracy']:.2f}",
        "top-5": f"{100 * results['accuracy_top5']:.2f}",
        "cost": f"{results['cost']:.3f}",
        "GMACs": f"{results['gmacs']:.3g}",
        "top-1 of the dense checkpoint": f"{100 * dense['accuracy']:.2f}" if dense else "–",
    }


def gates_name(gates):
    """A preset's name as it is, a list of gates by the names in it."""
    names = re.findall(r'gate"?\s*:\s*"?(\w+)', gates)
    return " + ".join(dict.fromkeys(names)) if names else gates


def provenance(results, batch):
    values = {**results, "batch": batch, "command": f"`{command(results['command'])}`"}
    return {key: "–" if values[key] is None else values[key] for key in PROVENANCE}


def command(line):
    """The command line with the folders of this machine cut to their last names."""
    return shlex.join(["=".join(short(part) for part in word.split("=", 1)) for word in shlex.split(line)])


def short(path):
    """An absolute or upward path by its last two names; everything else as it is."""
    if not path.startswith(("/", "../")):
        return path
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return "/".join(parts[-2:])


def table(rows):
    """dicts with the same keys -> a Markdown table."""
    cells = [list(rows[0])] + [["---"] * len(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


if __name__ == "__main__":
    main()
