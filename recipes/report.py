"""The results tables of recipes/README.md, and the one of README.md: python recipes/report.py [--write] results.json ...

Prints the tables of the files that are given; --readme and --front write them into other files. With --write the files
are stored in recipes/results, and both READMEs written anew from all that is stored there, unless any of it is refused;
without files from what is there already.
Each file is one that train.py, evaluate.py, search.py, step_time.py, compare_agents.py, merge_comparisons.py or
`python -m hf_dynvit.benchmark --json` wrote; all numbers of the tables come from them. README.md begins with the methods that
were tuned alike, and shows further below the models that were timed, and the comparisons of agents.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from hf_dynvit.report import (
    Benchmark,
    Comparison,
    Deployment,
    Evaluation,
    Leaderboard,
    Runtimes,
    Search,
    StepTime,
    Training,
)
from hf_dynvit.report import read as read_results
from hf_dynvit.report.beside import COMPARED, INTRODUCTION, agent_rows, beside_rows
from hf_dynvit.report.calibration_results import Calibration
from hf_dynvit.report.claims import claims_section
from hf_dynvit.report.comparison import comparison_section
from hf_dynvit.report.deployment_results import DEPLOYED, GAINED, GAINED_MEANING, deployed_items, fastest_deployed
from hf_dynvit.report.deployment_results import MEANING as DEPLOYED_MEANING
from hf_dynvit.report.dials import DIALS, dial_items
from hf_dynvit.report.dials import MEANING as DIALS_MEANING
from hf_dynvit.report.every_budget import EVERY, every_rows
from hf_dynvit.report.fastest import fastest_rows, fastest_words
from hf_dynvit.report.front import clock_rows, clock_words, strongest, tuned_rows, tuned_words
from hf_dynvit.report.leaderboard import named, plot_name
from hf_dynvit.report.leaderboard import sections as leaderboard_sections
from hf_dynvit.report.leaderboard_plot import plot
from hf_dynvit.report.looks import LOOKS, looks_items
from hf_dynvit.report.looks import MEANING as LOOKS_MEANING
from hf_dynvit.report.markdown import numbered, rows, table
from hf_dynvit.report.per_image import MEANING, PER_IMAGE, per_image_items
from hf_dynvit.report.point_results import POINTS, POINTS_MEANING, Points, point_items
from hf_dynvit.report.rivals import by_seed
from hf_dynvit.report.runtime_results import EVERYWHERE, GAINED_EVERYWHERE, front_rows
from hf_dynvit.report.runtime_results import MEANING as EVERYWHERE_MEANING
from hf_dynvit.report.runtime_results import runtime_items as way_items
from hf_dynvit.report.stored import by_name, keep, stored, take
from hf_dynvit.report.tables import (
    BENCHMARKED,
    CHOSEN,
    EVALUATED,
    RUNTIMES,
    SEARCHED,
    SPEED,
    STEPS,
    TRAINED,
    beyond_promise,
    runtime_items,
)
from hf_dynvit.training.methods import METHODS


README = Path(__file__).resolve().parent / "README.md"
FRONT = README.parent.parent / "README.md"
STORED = README.parent / "results"


def main(argv=None):
    """`[--write] [--readme FILE] [--front FILE] JSON ...`; returns the tables of results, which are printed unless written.

    Another readme has no front of its own.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("files", nargs="*", metavar="JSON", help="what a recipe or the benchmark wrote")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"store the files in {STORED.parent.name}/{STORED.name}; write {README.parent.name}/{README.name} and "
        f"{FRONT.name} from all that is stored",
    )
    parser.add_argument(
        "--readme", type=Path, help="file whose results are written instead of those of recipes/README.md"
    )
    parser.add_argument("--front", type=Path, help="file whose front is written instead of that of README.md")
    args = parser.parse_intermixed_args(argv)
    write = args.write and not args.readme
    readme, front = args.readme or (README if write else None), args.front or (FRONT if write else None)
    taken = take(args.files, STORED) if write else {}
    results = stored(STORED, taken) if write else [read(path) for path in by_name(args.files)]
    if not results:
        raise ValueError("give the JSON files of train.py and evaluate.py" + f"; {STORED} holds none" * write)
    tables = render(results, STORED.name if write else None)
    texts = {readme: between(readme, results=tables)} if readme else {}
    shown = {name: part(results) for name, part in FRONTS.items()} if front else {}
    if any(shown.values()) or write:
        texts[front] = between(front, **shown)
    keep(STORED, taken)
    if write:
        draw_boards(results)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    if not (readme or front):
        print(tables)
    return tables


def draw_boards(results):
    """The plots of all leaderboards, which the READMEs show."""
    for board, name in pictures(results):
        plot(board, STORED / name)


def pictures(results):
    """(leaderboard, name of its plot), those that README.md shows first."""
    boards = [one for one in results if isinstance(one, Leaderboard)]
    shown = [board for _, board in strongest(boards)]
    found = sorted(named(boards), key=lambda item: shown.index(item[1]) if item[1] in shown else len(shown))
    return [(board, plot_name(name)) for name, board in found]


def between(file, **parts):
    """The text of a file with other parts between the two markers of each, by its name."""
    text = file.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, end = markers(name)
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{file} must contain {start} and {end} once each")
        text = f"{text.split(start)[0]}{start}\n\n{part}\n\n{end}{text.split(end)[1]}"
    return text


def markers(name):
    """What stands before and after a part that is written anew."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def read(path):
    """One JSON file; ValueError if it is damaged, of no known kind or one without rows, or its speed is against too few dense
    models."""
    results = read_results(path, published=True)
    if isinstance(results, Calibration):
        raise ValueError(
            f"{path} says what calibrate.py did, and no table shows that: measure the model with evaluate.py"
        )
    return results


def render_front(results):
    """What README.md begins with: the plot and the table of the methods that were tuned alike, as far as there are any."""
    boards = [one for one in results if isinstance(one, Leaderboard)]
    shown = [
        f"![Top-1 of all methods against their cost, {board.dataset}]({README.parent.name}/{STORED.name}/{name})"
        for board, name in pictures(results)[:1]
    ]
    made = tuned_rows(boards, list(METHODS))
    return "\n\n".join(shown + tabled(tuned_words(made), made))


def render_clock(results):
    """The tables of README.md of what gates gain in time, when a model is used and when it is trained."""

    def of(kind):
        return [one for one in results if isinstance(one, kind)]

    timed = of(Evaluation), of(Leaderboard)
    parts = tabled(fastest_words(timed[1]), fastest_rows(timed[1]))
    parts += tabled(clock_words(*timed), clock_rows(*timed))
    parts += tabled(GAINED_EVERYWHERE, front_rows(of(Runtimes)))
    parts += tabled(GAINED_MEANING, rows(GAINED, fastest_deployed(of(Deployment))))
    parts += tabled(COMPARED, agent_rows(of(Comparison)))
    return "\n\n".join(parts)


def tabled(introduction, made):
    """An introduction and the table of some rows; nothing where there are none."""
    return [introduction, table(made)] if made else []


FRONTS = {"front": render_front, "clock": render_clock}  # part of README.md: what is written there


def render(results, plots=None):
    """The tables as Markdown: trainings, evaluations, speed and so on, each with what it has to say below it.

    Args:
        plots: of `sections`, where the plots of leaderboards are stored.
    """

    def of(kind):
        return [one for one in results if isinstance(one, kind)]

    def section(heading, columns, items, *below):
        made = rows(columns, items)
        return [f"### {heading}", *numbered(made), *below] if made else []

    trainings, evaluations, steps = by_seed(of(Training)), of(Evaluation), of(StepTime)
    trained = []
    for runs in trainings:
        trained += rows(TRAINED, [(runs,)])
        if runs[0].chosen:
            trained += rows(CHOSEN, [([replace(run, **vars(run.chosen)) for run in runs],)])
    parts = ["### Trained", *numbered(trained)] if trained else []
    if any(len(runs) > 1 for runs in trainings):
        parts += ["Several seeds: ± is the sample standard deviation of top-1, everything else the mean."]
    parts += section("Evaluated", EVALUATED, [([one],) for one in evaluations])
    beside = beside_rows(trainings, evaluations)
    parts += ["### Beside what it has to beat", INTRODUCTION, table(beside)] if beside else []
    parts += section("Per image", PER_IMAGE, per_image_items(evaluations), MEANING)
    parts += section("Cascades", LOOKS, looks_items(evaluations), LOOKS_MEANING)
    parts += section(
        "One model for every budget", DIALS, dial_items(of(Training), evaluations, of(Leaderboard)), DIALS_MEANING
    )
    every = every_rows(of(Leaderboard))
    parts += ["### A cascade for every budget", EVERY, table(every)] if every else []
    parts += section("Searched", SEARCHED, [(one,) for one in of(Search)])
    speeds = [(one, speed) for one in evaluations for speed in one.throughput]
    parts += section("Speed", SPEED, speeds, *beyond_promise(*(one.throughput for one in evaluations)))
    runtimes = [item for one in evaluations for item in runtime_items(one)]
    parts += section("The dense model in other runtimes", RUNTIMES, runtimes)
    timed = [(one, step) for one in steps for step in one.steps]
    parts += section("Training steps", STEPS, timed)
    parts += section("Chosen by the clock", POINTS, point_items(of(Points)), POINTS_MEANING)
    parts += section("Every runtime", EVERYWHERE, way_items(of(Runtimes)), EVERYWHERE_MEANING)
    parts += section("Deployed", DEPLOYED, deployed_items(of(Deployment)), DEPLOYED_MEANING)
    parts += claims_section(trainings, evaluations, of(Search), steps)
    parts += comparison_section(of(Comparison))
    parts += leaderboard_sections(of(Leaderboard), plots)
    benchmarks = of(Benchmark)
    drawn = [(one, speed) for one in benchmarks for speed in one.rows]
    parts += section(
        "Speed at a given cost, random decisions",
        BENCHMARKED,
        drawn,
        *beyond_promise(*(one.rows for one in benchmarks)),
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
