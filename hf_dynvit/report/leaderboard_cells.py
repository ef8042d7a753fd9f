"""The cells of a leaderboard: each method brought to a budget, trained by the recipe, evaluated and timed, on the same images."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from transformers.utils import CONFIG_NAME

from ..data import check_held_out, crop_of, cropping, load_image_data
from ..measure import measured_on, time_batches
from ..measure.dense import PROGRAMS, ahead, kernels_at_hand
from ..measure.files import check_weights
from ..measure.looks import BUDGETS, measure_looks
from ..measure.trained_models import Entrant, dense_vit, shuffled
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import can_prepack
from ..training.method_models import prepare
from ..training.methods import DENSE, METHODS
from ..training.starting_model import load_base, load_model, naming
from .leaderboard_results import Cell, Leaderboard, SmallerDense
from .leaderboard_tuning import kept_name
from .run_results import evaluate


SAME = 0.005  # cost that a model may be off its cell: thresholds round otherwise on another machine


class Place:
    """The checkpoint, its images and the recipe, the same for all cells.

    Args:
        program: model -> what runs it compiled as a whole, with the same predictions; None of a model that has no such form.
    """

    def __init__(self, board, model_args, data_args, args, program=lambda model: None):
        if model_args.new_classifier:
            raise ValueError(
                "a board begins with what a checkpoint knows, and new_classifier replaces that: train one first, with recipes/train.py "
                "--gates none --new_classifier true"
            )
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
        processor = cropping(processor, self.data_args.crop_pct)
        data = load_image_data(self.data_args, processor, config, False, self.args.seed)
        plain = replace(model_args, gates="none", budget=1.0, resolution=None, cascade=[], last_layer=None)
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
            crop_pct=crop_of(json.loads(self.processor.to_json_string())),
            dense=evaluate(self.dense, self._loader(self.data.validation), "the dense model").scores,
            settings={"model": asdict(self.model_args), "data": asdict(self.data_args), "board": asdict(self.board)}
            | {"training": self.args.to_sanitized_dict()},
            **measured_on(self.args.device, "float32", self.args.seed),
        )

    def kept(self, method, budget, seed):
        """The folder of a model that was tuned."""
        return Path(self.args.output_dir) / kept_name(method, budget, seed)

    def load(self, folder):
        """A model that was kept."""
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
        model = self.load(folder) if cell.tuned else start
        model = model or prepare(cell.method, self.vit, cell.budget, self.batches, self.model_args.last_layer)
        same = all(getattr(model.config, name) == getattr(cell, name) for name in ("gates", "resolution", "cascade"))
        last_layer = None if cell.method == DENSE else self.model_args.last_layer
        if not same or model.config.last_layer != last_layer:
            return None, "its gates, resolution, looks or last layer would be others today"
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
        return vars(evaluate(self._ready(entrant.model), self._loader(entrant.images), name).scores)

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
