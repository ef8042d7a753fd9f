"""The results tables of recipes/README.md, and the one of README.md: python recipes/report.py [--write] results.json ...

Prints the tables of recipes/README.md; with --write it writes both files anew, with --readme or --front another one.
Each file is one that train.py, evaluate.py, search.py, step_time.py, compare_agents.py, merge_comparisons.py or
`python -m hf_dynvit.benchmark --json` wrote; all numbers of the tables come from them. README.md shows each training of
gates and each other model that was timed, beside what it has to beat, and the comparisons of agents.
"""

import argparse
from pathlib import Path

from hf_dynvit.measure.dense import check_published
from hf_dynvit.measure.files import read_json
from hf_dynvit.report.claims import claims_section
from hf_dynvit.report.comparison import INTRODUCTION as COMPARED
from hf_dynvit.report.comparison import KIND, comparison_section, front_comparison_rows
from hf_dynvit.report.front import INTRODUCTION, front_rows
from hf_dynvit.report.rivals import by_seed
from hf_dynvit.report.tables import (
    Commands,
    benchmark_row,
    beyond_promise,
    chosen_rows,
    circumstances,
    evaluation_row,
    numbered,
    runtime_rows,
    search_row,
    speed_row,
    step_rows,
    table,
    training_row,
)


README = Path(__file__).resolve().parent / "README.md"
FRONT = README.parent.parent / "README.md"
KINDS = ("training", "evaluation", "search", "step_time", KIND)
MEASURED = ("learned", "preset", "split_files", "cost_std")
NEEDED = {"training": MEASURED, "evaluation": MEASURED, KIND: ("split_files", "curves_on")}  # without it, no fair row
NEEDED |= {"search": ("images_from",), "step_time": ("leanest",)}


def main(argv=None):
    """`[--write] [--readme FILE] [--front FILE] JSON ...`; returns the tables of results, which are printed unless written.

    Another readme has no front of its own.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("files", nargs="*", metavar="JSON", help="what a recipe or the benchmark wrote")
    parser.add_argument(
        "--write", action="store_true", help=f"write {README.parent.name}/{README.name} and {FRONT.name}"
    )
    parser.add_argument(
        "--readme", type=Path, help="file whose results are written instead of those of recipes/README.md"
    )
    parser.add_argument("--front", type=Path, help="file whose front table is written instead of that of README.md")
    args = parser.parse_intermixed_args(argv)
    if not args.files:
        raise ValueError("give the JSON files of train.py and evaluate.py")
    write = args.write and not args.readme
    readme, front = args.readme or (README if args.write else None), args.front or (FRONT if write else None)
    results = [read(path) for path in args.files]
    tables = render(results)
    texts = {readme: between(readme, "results", tables)} if readme else {}
    shown = render_front(results) if front else None
    if shown:
        texts[front] = between(front, "front", shown)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    if not (readme or front):
        print(tables)
    return tables


def between(file, name, part):
    """The text of a file with another part between two markers."""
    start, end = markers(name)
    text = file.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{file} must contain {start} and {end} once each")
    return f"{text.split(start)[0]}{start}\n\n{part}\n\n{end}{text.split(end)[1]}"


def markers(name):
    """What stands before and after a part that is written anew."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def read(path):
    """One JSON file; raises ValueError if it is damaged, none of the scripts wrote it, or its speed is against too few
    dense models."""
    results = read_json(path)
    if isinstance(results, dict) and results.get("kind") in KINDS:
        missing = [name for name in NEEDED.get(results["kind"], ()) if name not in results]
        if missing:
            raise ValueError(f"{path} was written by an earlier version, without {', '.join(missing)}: run it again")
        if results["kind"] == "evaluation":
            check_published(results, path)
        return results
    if isinstance(results, dict) and all("realised" in row for row in results.get("rows") or [{}]):
        if any("gates" not in row for row in results["rows"]):
            raise ValueError(
                f"{path} compares trained models (--models), which has no table: measure with evaluate.py"
            )
        check_published(results, path)
        return {**results, "kind": "benchmark"}
    raise ValueError(
        f"{path} was written neither by train.py nor evaluate.py nor search.py nor step_time.py nor compare_agents.py "
        "nor the benchmark"
    )


def render_front(all_results):
    """The tables of README.md as Markdown; none of either kind leaves its table out."""
    trainings = by_seed(results for results in all_results if results["kind"] == "training")
    rows = front_rows(trainings, [results for results in all_results if results["kind"] == "evaluation"])
    compared = front_comparison_rows(results for results in all_results if results["kind"] == KIND)
    parts = [INTRODUCTION, *numbered(rows)] if rows else []
    parts += [COMPARED, *numbered(compared)] if compared else []
    return "\n\n".join(parts)


def render(all_results):
    """The tables as Markdown: trainings, evaluations, speed."""
    trainings = by_seed(results for results in all_results if results["kind"] == "training")
    evaluations = [results for results in all_results if results["kind"] == "evaluation"]
    parts = []
    if trainings:
        rows = [row for runs in trainings for row in (training_row(runs), *chosen_rows(runs))]
        parts += ["### Trained", *numbered(rows)]
    if any(len(runs) > 1 for runs in trainings):
        parts += ["Several seeds: ± is the sample standard deviation of top-1, everything else the mean."]
    if evaluations:
        parts += ["### Evaluated", *numbered([evaluation_row(results) for results in evaluations])]
    searches = [results for results in all_results if results["kind"] == "search"]
    if searches:
        parts += ["### Searched", *numbered([search_row(results) for results in searches])]
    speeds = [speed_row(results, row) for results in evaluations for row in results["throughput"]]
    if speeds:
        parts += ["### Speed", *numbered(speeds)]
        parts += beyond_promise(*(results["throughput"] for results in evaluations))
    runtimes = [row for results in evaluations for row in runtime_rows(results)]
    if runtimes:
        parts += ["### The dense model in other runtimes", *numbered(runtimes)]
    steps = [results for results in all_results if results["kind"] == "step_time"]
    if steps:
        parts += ["### Training steps", *numbered([row for results in steps for row in step_rows(results)])]
    parts += claims_section(trainings, evaluations, searches, [step for step in steps if "packed_ms" in step])
    parts += comparison_section([results for results in all_results if results["kind"] == KIND])
    for benchmark in (results for results in all_results if results["kind"] == "benchmark"):
        commands = Commands()
        parts += ["### Speed at a given cost, random decisions", circumstances(benchmark, commands)]
        parts += [table([benchmark_row(row) for row in benchmark["rows"]]), commands.listing()]
        parts += beyond_promise(benchmark["rows"])
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
