"""Every method on equal terms: python recipes/leaderboard.py RECIPE.yaml --methods all --budgets 0.65 0.5 0.4

For each method and budget: top-1, top-5 and cost on the split that is reported, of the recipe's checkpoint untrained, and
with --tune true trained by the recipe with each of --seeds; with --batch_sizes also images per second against the fastest
dense model. With --smaller_dense PATH a plain ViT stands beside them, evaluated and timed on the same images: what one
could run instead. Amounts, thresholds and importance are found on a held-out part of train. Writes leaderboard.json after each
cell, and leaderboard.md and leaderboard.png at the end, to output_dir; the same command goes on where it was interrupted.
Parts that were run apart, with an output_dir each, become one table in report.py.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from transformers import set_seed

from hf_dynvit.data import DataArguments, load_image_data
from hf_dynvit.measure import measured_on, time_batches
from hf_dynvit.measure.dense import kernels_at_hand
from hf_dynvit.measure.trained_models import Entrant, dense_vit, shuffled
from hf_dynvit.model.bypass import bypass_of
from hf_dynvit.model.prepack import can_prepack
from hf_dynvit.report import Cell, Leaderboard, SmallerDense, read, write
from hf_dynvit.report.leaderboard import publish
from hf_dynvit.report.run_results import evaluate
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.arguments import DynViTTrainingArguments, is_default
from hf_dynvit.training.calibration import mean_cost
from hf_dynvit.training.looks import words_of
from hf_dynvit.training.methods import METHODS, WORKING, check_methods, prepare
from hf_dynvit.training.presets import as_taught
from hf_dynvit.training.starting_model import ModelArguments, load_base, load_model, load_teacher, naming
from hf_dynvit.training.trainer import DynViTTrainer


# Settings that may change between the starts of one board, by part.
FREE = {
    "board": ("methods", "budgets", "tune", "seeds", "batch_sizes", "seconds", "smaller_dense"),
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
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "seeds that each is trained with"})
    images: int = field(default=128, metadata={"help": "images of train for amounts, thresholds and importance"})
    batch_sizes: list[int] = field(default_factory=list, metadata={"help": "to time; none: no timing"})
    seconds: float = field(default=5.0, metadata={"help": "time for the rounds of one batch size"})
    smaller_dense: str | None = field(
        default=None, metadata={"help": "the next smaller plain ViT, trained on the same classes: folder or Hub id"}
    )

    def __post_init__(self):
        self.methods = check_methods(self.methods, self.tune)
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
        raise ValueError("looks_together is what the method says: take 'cascade-together' in place of the argument")
    folder = Path(args.output_dir)
    place = Place(board, model_args, data_args, args)
    results = go_on(place.empty(), folder / "leaderboard.json")

    def save():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "leaderboard.json", results)

    if place.smaller is not None:
        results.smaller = place.smaller_dense(results.smaller)
        save()
    finished = {(cell.method, cell.budget, cell.tuned, cell.seed) for cell in results.cells}
    for budget in board.budgets:
        for method in board.methods:
            seeds = board.seeds if board.tune else []
            wanted = [(False, 0)] * METHODS[method].untrained() + [(True, seed) for seed in seeds]
            missing = [one for one in wanted if (method, budget, *one) not in finished]
            start = prepare(method, place.vit, budget, place.batches) if missing else None
            for tuned, seed in missing:
                model = place.tuned(start, method, budget, seed) if tuned else start
                cell = place.cell(model, method, budget, tuned, seed)
                results.cells.append(replace(cell, commit=results.commit, command=results.command))
                save()
    publish([results], folder)
    return results.to_json()


class Place:
    """The checkpoint, its images and the recipe, the same for all cells."""

    def __init__(self, board, model_args, data_args, args):
        self.board, self.model_args, self.data_args, self.args = board, model_args, data_args, args
        self.processor, self.config, self.data, self.dense = self._open(model_args)
        self.kernels = bool(board.batch_sizes) and args.device.type == "cpu" and kernels_at_hand()
        self.smaller = None
        if board.smaller_dense is not None:
            with naming("smaller_dense", board.smaller_dense):
                given = {"model_name_or_path": board.smaller_dense, "new_classifier": False, "new_vit": None}
                self.smaller = self._open(replace(model_args, **given))
        self.vit = dense_vit(self.dense)
        order = torch.randperm(len(self.data.calibration), generator=torch.Generator().manual_seed(args.seed))
        chosen = Subset(self.data.calibration, order[: board.images].tolist())
        self.batches = [batch["pixel_values"].to(args.device) for batch in self._loader(chosen)]

    def _open(self, model_args):
        """Image processor, configuration, data and model of a plain ViT."""
        processor, config = load_base(model_args)
        data = load_image_data(self.data_args, processor, config, False, self.args.seed)
        plain = replace(model_args, gates="none", budget=1.0, resolution=None, cascade=[])
        return processor, config, data, load_model(plain, config, data).eval().to(self.args.device)

    def _loader(self, images):
        return DataLoader(images, self.args.per_device_eval_batch_size)

    def empty(self):
        """A `Leaderboard` without cells."""
        return Leaderboard(
            model=self.model_args.model_name_or_path,
            dataset=self.data_args.name(),
            split=self.data.reported_split,
            split_files=self.data_args.files_of(self.data.reported_split),
            images=len(self.data.validation),
            dense=evaluate(self.dense, self._loader(self.data.validation), "the dense model")[0],
            settings={"model": asdict(self.model_args), "data": asdict(self.data_args), "board": asdict(self.board)}
            | {"training": self.args.to_sanitized_dict()},
            **measured_on(self.args.device, "float32", self.args.seed),
        )

    def tuned(self, start, method, budget, seed):
        """The model of a method after training by the recipe, from the gates that it starts with untrained."""
        fixed = not start.learned_gates() or METHODS[method].least is not None
        gates = json.dumps(start.config.gates) if start.config.gates else "none"
        aim = min(1.0, mean_cost(start, self.batches)) if fixed else budget
        looks = words_of(start.config.cascade)
        model_args = replace(
            self.model_args, gates=gates, budget=aim, resolution=start.config.resolution, cascade=looks
        )
        thresholds = bool(start.learned_gates()) and not fixed
        recipe = as_taught(self.args, method) if METHODS[method].learns else self.args
        args = replace(
            recipe,
            seed=seed,
            output_dir=str(Path(self.args.output_dir) / f"{method}_{budget}_{seed}"),
            tuning_budgets=[budget] if thresholds and not looks and recipe.freeze_gates_at < 1 else [],
            importance_images=self.board.images if METHODS[method].importance else 0,
            calibrate_first=thresholds,
            **fitted_before(METHODS[method], start, self.board.images),
            looks_together=METHODS[method].together,
            save_strategy="no",
        )
        set_seed(seed)
        model = load_model(model_args, self.config, self.data)
        teacher = load_teacher(model_args, args, model.config)
        trainer = DynViTTrainer(
            model=model,
            args=args,
            teacher=teacher,
            calibration_dataset=self.data.calibration,
            processing_class=self.processor,
            **self.data.for_trainer(),
        )
        trainer.train()
        trainer.save_model()
        return model

    def cell(self, model, method, budget, tuned, seed):
        """What a model reaches, as a `Cell`."""
        entrant = Entrant(method, model, self.vit, self.data.validation, self.processor.to_json_string())
        return Cell(
            **self._measured(entrant, f"{method} at {budget}"),
            method=method,
            budget=budget,
            tuned=tuned,
            seed=seed,
            resolution=model.config.resolution,
            gates=model.config.gates,
            cascade=model.config.cascade,
        )

    def smaller_dense(self, earlier):
        """The smaller dense model as a `SmallerDense`: as an earlier start has measured it if that is the same, or anew."""
        path, sizes = self.board.smaller_dense, self.board.batch_sizes
        if earlier and (earlier.model, [speed.batch_size for speed in earlier.throughput]) == (path, sizes):
            return earlier
        processor, _, data, model = self.smaller
        entrant = Entrant(path, model, dense_vit(model), data.validation, processor.to_json_string())
        return SmallerDense(model=path, **self._measured(entrant, "the smaller dense model"))

    def _measured(self, entrant, name):
        """The fields of `Scores` and the speeds of a model."""
        model = entrant.model.eval()
        if self.args.device.type == "cpu" and can_prepack():
            model.prepack(kernels=self.kernels)
        found, timed = evaluate(model, self._loader(entrant.images), name)[0], shuffled(entrant, self.args.seed)
        speeds = [time_batches(timed, size, self.board.seconds) for size in self.board.batch_sizes]
        return vars(found) | {"throughput": speeds}


def fitted_before(method, start, images):
    """Training arguments of a method whose heads and sub-layers are fitted in closed form: on how many images."""
    if not method.fitted:
        return {"harm_images": 0}
    bypasses = any(bypass_of(gates) for gates in start.gates)
    return {"harm_images": images, "harm_shares": list(WORKING), "bypass_images": images if bypasses else 0}


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
    for name in ("model", "dataset", "split_files", "images", "dtype"):
        if getattr(earlier, name) != getattr(results, name):
            raise ValueError(
                f"{file} holds cells of another {name}, {getattr(earlier, name)!r} and not {getattr(results, name)!r}: give "
                "another output_dir"
            )
    given = json.loads(json.dumps(results.settings))
    for part, free in FREE.items():
        before, now = earlier.settings[part], given[part]
        changed = sorted(key for key in now if key not in free and _differs(part, key, before, now[key]))
        if changed and (part != "training" or any(cell.tuned for cell in earlier.cells)):
            raise ValueError(f"{file} holds cells of another recipe, {changed} differ: give another output_dir")
    return replace(results, cells=earlier.cells, smaller=earlier.smaller)


if __name__ == "__main__":
    main()
