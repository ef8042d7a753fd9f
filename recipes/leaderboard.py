"""Every method on equal terms: python recipes/leaderboard.py RECIPE.yaml --methods all --budgets 0.65 0.5 0.4

For each method and budget: top-1, top-5 and cost on the split that is reported, of the recipe's checkpoint untrained, and
with --tune true trained by the recipe with each of --seeds; with --batch_sizes also images per second against the fastest
dense model. With --smaller_dense PATH a plain ViT stands beside them, evaluated and timed on the same images: what one
could run instead. Amounts, thresholds and importance are found on a held-out part of train. Writes leaderboard.json after each
cell, and leaderboard.md and leaderboard.png at the end, to output_dir; the same command goes on where it was interrupted,
measures kept cascades at other budgets where that is missing, and with --batch_sizes that it did not have it times what is
there: the models that it tuned are kept, so they can be trained beside other work and timed when there is none. With --trained
FOLDER the models of boards that were tuned before are measured in place of new ones, on images that another --crop_pct cuts:
thresholds and importance, which are found on such images, are found anew, and the looks of a cascade count as they would today.
With --plugin FILE.py a file of your own runs first, that registers scorers and methods (so in every recipe, where a model has them).
Parts that were run apart, with an output_dir each, become one table in report.py.
"""

import itertools
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_dynvit.data import DataArguments
from hf_dynvit.deploy.compiled import program_of
from hf_dynvit.report import read, write
from hf_dynvit.report.leaderboard import publish
from hf_dynvit.report.leaderboard_cells import Place
from hf_dynvit.report.leaderboard_tuning import Earlier, brought, tuned
from hf_dynvit.report.names import counts_text
from hf_dynvit.report.names import place as place_of
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.arguments import DynViTTrainingArguments, is_default
from hf_dynvit.training.looks import as_today
from hf_dynvit.training.method_models import prepare
from hf_dynvit.training.methods import METHODS, check_methods
from hf_dynvit.training.starting_model import ModelArguments
from hf_dynvit.training.timed_calibration import OutOfReach


# Settings that may change between the starts of one board, by part.
FREE = {
    "board": (
        "methods",
        "budgets",
        "tune",
        "untrained",
        "seeds",
        "batch_sizes",
        "seconds",
        "smaller_dense",
        "trained",
        "complete",
    ),
    "model": ("gates", "budget", "resolution", "cascade"),  # which the methods say
    "data": (),
    "training": ("output_dir", "run_name", "logging_dir"),
}


@dataclass
class LeaderboardArguments:
    """What to compare."""

    methods: list[str] = field(default_factory=lambda: ["all"], metadata={"help": f"all, or of {list(METHODS)}"})
    budgets: list[float] = field(default_factory=lambda: [0.8, 0.65, 0.5, 0.4, 0.3], metadata={"help": "mean costs"})
    tune: bool = field(default=False, metadata={"help": "also train each by the recipe"})
    untrained: bool = field(default=True, metadata={"help": "no: with --tune true, the tuned ones alone"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "seeds that each is trained with"})
    images: int = field(default=128, metadata={"help": "images of train for amounts, thresholds and importance"})
    batch_sizes: list[int] = field(default_factory=list, metadata={"help": "to time; none: no timing"})
    seconds: float = field(default=5.0, metadata={"help": "time for the rounds of one batch size"})
    smaller_dense: str | None = field(
        default=None, metadata={"help": "the next smaller plain ViT, trained on the same classes: folder or Hub id"}
    )

    complete: bool = field(
        default=False,
        metadata={"help": "train nothing: only add the times, or looks, that cells of an earlier start lack"},
    )
    trained: list[str] = field(
        default_factory=list,
        metadata={
            "help": "folders of boards tuned by the same recipe, but for crop_pct: their models are taken, none is trained"
        },
    )

    def __post_init__(self):
        self.methods, self.budgets = check_methods(self.methods, self.tune), list(dict.fromkeys(self.budgets))
        if self.complete and self.trained:
            raise ValueError(f"complete measures no models anew, and trained {self.trained} does: give one of them")
        if self.seeds != [0] and not self.tune:
            raise ValueError(f"seeds {self.seeds} are of trainings: give --tune true")
        if self.trained and not self.tune:
            raise ValueError(f"trained {self.trained} are in place of training: give --tune true")
        if not (self.tune or self.untrained):
            raise ValueError("nothing is left to measure: give --tune true with --untrained false")
        wrong = [budget for budget in self.budgets if not 0 < budget <= 1]
        if wrong or not self.budgets:
            raise ValueError(f"budgets must be in (0, 1], got {self.budgets}")
        if self.images < 1 or any(size < 1 for size in self.batch_sizes):
            raise ValueError(f"images and batch_sizes must be at least 1, got {self.images} and {self.batch_sizes}")


def main(argv=None):
    """Run the comparison; returns the content of leaderboard.json."""
    board, model_args, data_args, args = parse_settings(
        sys.argv[1:] if argv is None else argv,
        LeaderboardArguments,
        ModelArguments,
        DataArguments,
        DynViTTrainingArguments,
    )
    if args.looks_together:
        raise ValueError(
            "looks_together is what the method says: take 'cascade-together' or 'cascade-every' in place of the argument"
        )
    folder = Path(args.output_dir)
    if board.complete and not (folder / "leaderboard.json").is_file():
        raise ValueError(f"there are no cells to complete in {str(folder)!r}: leave out complete")
    place = Place(board, model_args, data_args, args, program_of)
    earlier = Earlier(board.trained)
    results = place.empty()
    for path, before in earlier.boards.items():
        check_same(before, results, path, {"data": ("crop_pct",)})
    results = go_on(results, folder / "leaderboard.json")

    def save():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "leaderboard.json", results)

    if place.smaller is not None:
        results.smaller = place.smaller_dense(results.smaller)
        save()
    check_counts(results, board)
    finished = {(cell.method, cell.budget, cell.tuned, cell.seed) for cell in results.cells}
    for one in itertools.product(board.methods, board.budgets, board.seeds) if board.trained else ():
        if (*one[:2], True, one[2]) not in finished:
            earlier.model(*one)  # what is missing is said before any work
    for budget in board.budgets:
        for method in board.methods:
            seeds = board.seeds if board.tune else []
            wanted = [(False, 0)] if board.untrained and METHODS[method].untrained() else []
            wanted += [(True, seed) for seed in seeds]
            missing = [one for one in wanted if (method, budget, *one) not in finished and not board.complete]
            new = [one for one in missing if not (one[0] and board.trained)]
            try:
                start = prepare(method, place.vit, budget, place.batches, model_args.last_layer) if new else None
            except OutOfReach as error:
                print(f"left out: {error}")
                continue
            for tune, seed in missing:
                facts = {"commit": results.commit, "command": results.command}
                if tune and board.trained:
                    model = brought(place, earlier, method, budget, seed)
                    facts |= earlier.facts(method, budget, seed)
                else:
                    model = tuned(place, start, method, budget, seed) if tune else start
                results.cells.append(replace(place.cell(model, method, budget, tune, seed), **facts))
                save()
            for at, cell in enumerate(results.cells):
                if (cell.method, cell.budget) == (method, budget) and (cell.tuned, cell.seed) in wanted:
                    results.cells[at] = with_rest(cell, place, results, start)
                    save()
    publish([results], folder)
    print(f"{len(results.cells)} cells, their table and plot: {folder / 'leaderboard.md'}")
    return results.to_json()


def check_counts(results, board):
    """Raise ValueError for a cascade whose seeds would count their looks in two ways."""
    for cell in results.cells:
        seeds = {
            one.seed for one in results.cells if (one.method, one.budget) == (cell.method, cell.budget) and one.tuned
        }
        more = (
            cell.tuned and (cell.method in board.methods and cell.budget in board.budgets) and set(board.seeds) - seeds
        )
        if cell.cascade and more and not board.complete and as_today(cell.cascade) != cell.cascade:
            raise ValueError(
                f"the looks of {cell.method} at {cell.budget}, seed {cell.seed}, count {counts_text(cell.cascade)}, as they no longer "
                f"do for a new seed {sorted(more)}: give another output_dir, and --trained for those that there are"
            )


def with_rest(cell, place, results, start):
    """A cell with its times and looks, of this start where some were missing; why not is printed."""
    done, why_not = place.completed(cell, start)
    if why_not:
        print(f"{cell.method} at {cell.budget}, seed {cell.seed}, stays without times or looks: {why_not}")
    if done.looks is not cell.looks:
        done = replace(done, looked_commit=results.commit, looked_command=results.command)
    if done.throughput is not cell.throughput:
        facts = {"timed_commit": results.commit, "timed_command": results.command, "timed_on": place_of(results)}
        done = replace(done, **facts)
    return done


def _differs(part, key, before, now):
    """Whether a setting is another one now; a training option that the earlier start did not know was its default there."""
    if part == "training" and key not in before and is_default(key, now):
        return False
    return before.get(key) != now


def go_on(results, file):
    """`results` with the cells that `file` holds of an earlier, interrupted start, if there is one.

    Raises:
        ValueError: cells of another checkpoint, other images or another recipe.
    """
    if not file.exists():
        return results
    earlier = read(file)
    check_same(earlier, results, file)
    timed = any(cell.throughput for cell in earlier.cells)
    for name in ("device", "instructions", "threads") if timed else ():
        if getattr(earlier, name) != getattr(results, name):
            raise ValueError(
                f"{file} holds times of another machine, {name} {getattr(earlier, name)!r} and not {getattr(results, name)!r}: "
                "give another output_dir"
            )
    return replace(results, cells=earlier.cells, smaller=earlier.smaller)


def check_same(earlier, results, source, free=None):
    """Raise ValueError for a board of another checkpoint, other images or another recipe than `results`.

    Args:
        source: where it is from, to name it. free: settings that may differ beside `FREE`, by part.
    """
    for name in ("model", "dataset", "split_files", "images", "dtype"):
        if getattr(earlier, name) != getattr(results, name):
            raise ValueError(
                f"{source} holds cells of another {name}, {getattr(earlier, name)!r} and not {getattr(results, name)!r}: give "
                "another folder"
            )
    given, trained = json.loads(json.dumps(results.settings)), any(cell.tuned for cell in earlier.cells)
    for part, names in FREE.items():
        before, now, names = earlier.settings[part], given[part], (*names, *(free or {}).get(part, ()))
        changed = sorted(key for key in now if key not in names and _differs(part, key, before, now[key]))
        if part == "training" and not trained:  # what is not trained
            changed = [key for key in changed if key in ("seed", "per_device_eval_batch_size")]
        if changed:
            raise ValueError(f"{source} holds cells of another recipe, {changed} differ: give another folder")


if __name__ == "__main__":
    main()
