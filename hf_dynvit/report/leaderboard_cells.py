"""The cells of a leaderboard: each method brought to a budget, trained by the recipe, evaluated and timed, on the same images."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from transformers import set_seed
from transformers.utils import CONFIG_NAME

from ..data import check_held_out, load_image_data
from ..measure import measured_on, time_batches
from ..measure.dense import PROGRAMS, ahead, kernels_at_hand
from ..measure.files import check_weights
from ..measure.looks import BUDGETS, measure_looks
from ..measure.trained_models import Entrant, dense_vit, shuffled
from ..model.bypass import bypass_of
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from ..training.calibration import mean_cost
from ..training.looks import words_of
from ..training.methods import METHODS, WORKING, prepare
from ..training.presets import as_taught
from ..training.starting_model import load_base, load_model, load_teacher, naming
from ..training.trainer import DynViTTrainer
from .leaderboard_results import Cell, Leaderboard, SmallerDense
from .run_results import evaluate


SAME = 0.005  # cost that a model may be off its cell: thresholds round otherwise on another machine


class Place:
    """The checkpoint, its images and the recipe, the same for all cells.

    Args:
        program: model -> what runs it compiled as a whole, with the same predictions; None of a model that has no such form.
    """

    def __init__(self, board, model_args, data_args, args, program=lambda model: None):
        if board.tune and any(METHODS[name].looks for name in board.methods):
            check_held_out(data_args)
        self.board, self.model_args, self.data_args, self.args = board, model_args, data_args, args
        self.processor, self.config, self.data, self.dense = self._open(model_args)
        self.kernels = bool(board.batch_sizes) and args.device.type == "cpu" and kernels_at_hand()
        self.smaller = None
        if board.smaller_dense is not None:
            with naming("smaller_dense", board.smaller_dense):
                given = {"model_name_or_path": board.smaller_dense, "new_classifier": False, "new_vit": None}
                self.smaller = self._open(replace(model_args, **given))
        self.vit, self.ahead, self.program = dense_vit(self.dense), None, program
        if board.batch_sizes and max(board.batch_sizes) > len(self.data.validation):
            raise ValueError(
                f"batch_sizes {board.batch_sizes} need as many images, {self.data.reported_split} has "
                f"{len(self.data.validation)}"
            )
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
        """The model of a method after training by the recipe, from the gates that it starts with untrained.

        It is the one that is kept: what accelerate did to the forward of the one that was trained (autocast) is gone.
        """
        fixed = not start.learned_gates() or not METHODS[method].by_thresholds()
        gates = json.dumps(start.config.gates) if start.config.gates else "none"
        looks = words_of(start.config.cascade)
        own = start.config.budget if looks else min(1.0, mean_cost(start, self.batches))
        aim = own if fixed else budget
        model_args = replace(
            self.model_args, gates=gates, budget=aim, resolution=start.config.resolution, cascade=looks
        )
        thresholds = bool(start.learned_gates()) and not fixed
        recipe = as_taught(self.args, method) if METHODS[method].learns else self.args
        args = replace(
            recipe,
            seed=seed,
            output_dir=str(self.kept(method, budget, seed)),
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
        return self._load(args.output_dir)

    def kept(self, method, budget, seed):
        """The folder of a model that was tuned."""
        return Path(self.args.output_dir) / f"{method}_{budget}_{seed}"

    def _load(self, folder):
        check_weights(folder)
        return DynViTForImageClassification.from_pretrained(folder).to(self.args.device)

    def completed(self, cell, start=None):
        """A `Cell` with its times at the batch sizes asked for and, of a cascade, its `looks`; and why not, if it lacks some now.

        Measured is the model that was kept; of an untrained one `start`, or one that is brought to the budget once more. Times that
        lack one of today's dense rivals are taken anew, all of them.
        """
        rivals = set(PROGRAMS) if self.args.device.type == "cpu" else set()
        if not all(rivals <= set(speed.dense_ms) for speed in cell.throughput) and self.board.batch_sizes:
            cell = replace(cell, throughput=[])
        known = {speed.batch_size for speed in cell.throughput}
        missing = [size for size in self.board.batch_sizes if size not in known]
        unseen = bool(cell.cascade) and not cell.looks
        if not (missing or unseen):
            return cell, None
        model, why_not = self._model_of(cell, start)
        if why_not:
            return cell, why_not
        if unseen:
            found = self._looks(model, cell.budget)
            now = [one for one in found.at if one.budget == cell.budget]
            if now and abs(now[0].cost - cell.cost) > SAME:
                return cell, f"its model costs {now[0].cost:.3f}, and the cell {cell.cost:.3f}"
            cell = replace(cell, looks=found)
        if missing:
            entrant = self._entrant(cell.method, model)
            cell = replace(cell, throughput=cell.throughput + self._speeds(entrant, missing))
        return cell, None

    def _model_of(self, cell, start):
        """(model, None) of a cell, or (None, why it is not at hand)."""
        folder = self.kept(cell.method, cell.budget, cell.seed)
        if cell.tuned and not (folder / CONFIG_NAME).exists():
            return None, f"its model is not in {folder.parent}"
        model = self._load(folder) if cell.tuned else start
        model = model or prepare(cell.method, self.vit, cell.budget, self.batches)
        if any(getattr(model.config, name) != getattr(cell, name) for name in ("gates", "resolution", "cascade")):
            return None, "its gates, resolution or looks would be others today"
        return model, None

    def _looks(self, model, budget):
        """`Looks` of a cascade on the images that are reported on."""
        return measure_looks(self._ready(model), self._loader(self.data.validation), sorted({*BUDGETS, budget}))

    def cell(self, model, method, budget, tuned, seed):
        """What a model reaches, as a `Cell`, without times."""
        return Cell(
            **self._scores(self._entrant(method, model), f"{method} at {budget}"),
            method=method,
            budget=budget,
            tuned=tuned,
            seed=seed,
            resolution=model.config.resolution,
            gates=model.config.gates,
            cascade=model.config.cascade,
            looks=self._looks(model, budget) if model.config.cascade else None,
        )

    def smaller_dense(self, earlier):
        """The smaller dense model as a `SmallerDense`; what an earlier start has measured of it stays."""
        path, (processor, _, data, model) = self.board.smaller_dense, self.smaller
        entrant = Entrant(path, model, dense_vit(model), data.validation, processor.to_json_string())
        if earlier is None or earlier.model != path:
            earlier = SmallerDense(model=path, **self._scores(entrant, "the smaller dense model"))
        known = {speed.batch_size for speed in earlier.throughput}
        missing = [size for size in self.board.batch_sizes if size not in known]
        return replace(earlier, throughput=earlier.throughput + self._speeds(entrant, missing))

    def _entrant(self, method, model):
        return Entrant(method, model, self.vit, self.data.validation, self.processor.to_json_string())

    def _scores(self, entrant, name):
        """The fields of `Scores` of a model."""
        return vars(evaluate(self._ready(entrant.model), self._loader(entrant.images), name)[0])

    def _speeds(self, entrant, sizes):
        self._ready(entrant.model)
        timed = shuffled(entrant, self.args.seed)
        compiled, program = True, None
        if entrant.vit is self.vit:
            compiled, program = self._ahead(), self.program(entrant.model)
        return [time_batches(timed, size, self.board.seconds, compiled=compiled, program=program) for size in sizes]

    def _ahead(self):
        """The compiled dense model, which is one for all cells."""
        self.ahead = self.ahead or ahead(self.vit)
        return self.ahead

    def _ready(self, model):
        """A model as it runs fastest here."""
        if self.args.device.type == "cpu" and can_prepack():
            model.eval().prepack(kernels=self.kernels)
        return model.eval()


def fitted_before(method, start, images):
    """Training arguments of a method whose heads and sub-layers are fitted in closed form: on how many images."""
    if not method.fitted:
        return {"harm_images": 0}
    bypasses = any(bypass_of(gates) for gates in start.gates)
    return {"harm_images": images, "harm_shares": list(WORKING), "bypass_images": images if bypasses else 0}
