"""The tuned models of a leaderboard: trained by its recipe, or trained before and brought to the budget on other pixels."""

import json
from dataclasses import replace
from pathlib import Path

from transformers import set_seed
from transformers.utils import CONFIG_NAME

from ..model.bypass import bypass_of
from ..training.calibration import mean_cost
from ..training.looks import as_today, words_of
from ..training.methods import METHODS, WORKING
from ..training.preparation import finish
from ..training.presets import as_taught
from ..training.starting_model import load_model, load_teacher
from ..training.trainer import DynViTTrainer
from .leaderboard_results import Leaderboard
from .schema import read


def kept_name(method, budget, seed):
    """Of the folder that a board keeps a tuned model in."""
    return f"{method}_{budget}_{seed}"


def tuned(place, start, method, budget, seed):
    """The model of a method after training by the recipe, from the gates that it starts with untrained.

    It is the one that is kept: what accelerate did to the forward of the one that was trained (autocast) is gone.

    Args:
        place: the `Place` of the board. start: the untrained model.
    """
    gates = json.dumps(start.config.gates) if start.config.gates else "none"
    args, aim = taught(place, start, method, budget, seed)
    model_args = replace(
        place.model_args,
        gates=gates,
        budget=aim,
        resolution=start.config.resolution,
        last_layer=start.config.last_layer,
        cascade=words_of(start.config.cascade),
    )
    set_seed(seed)
    model = load_model(model_args, place.config, place.data)
    trainer = _trainer(place, model, args, load_teacher(model_args, args, model.config))
    trainer.train()
    trainer.save_model()
    return place.load(args.output_dir)


def brought(place, earlier, method, budget, seed):
    """A model that an `Earlier` board trained, after what ends its training has run anew on this board's pixels.

    That is the importance of tokens and the thresholds, as the method has them, and how much each look of a cascade counts; the
    backbone stays as it is.

    Raises:
        ValueError: the earlier board has no such model.
    """
    model = place.load(earlier.model(method, budget, seed))
    if model.config.cascade:
        model.set_cascade(as_today(model.config.cascade))
    args, _ = taught(place, model, method, budget, seed)
    trainer = _trainer(place, model, args, None)
    finish(trainer)
    trainer.save_model()
    return place.load(args.output_dir)


class Earlier:
    """Boards that were tuned before, each a folder with leaderboard.json and the models that were kept."""

    def __init__(self, folders):
        self.boards = {Path(folder): read(Path(folder) / "leaderboard.json") for folder in folders}
        wrong = [str(folder) for folder, board in self.boards.items() if not isinstance(board, Leaderboard)]
        if wrong:
            raise ValueError(f"{wrong} are no leaderboards")

    def model(self, method, budget, seed):
        """The folder of a model; ValueError: there is none."""
        return self._find(method, budget, seed)[0]

    def facts(self, method, budget, seed):
        """Fields of a `Cell`: at which commit and by which command its model was trained."""
        _, board, cell = self._find(method, budget, seed)
        return {"trained_commit": cell.commit or board.commit, "trained_command": cell.command or board.command}

    def _find(self, method, budget, seed):
        name = kept_name(method, budget, seed)
        for folder, board in self.boards.items():
            cells = [one for one in board.cells if one.tuned and kept_name(one.method, one.budget, one.seed) == name]
            if cells and (folder / name / CONFIG_NAME).exists():
                return folder / name, board, cells[0]
        raise ValueError(f"trained {[str(folder) for folder in self.boards]} have no model {name}")


def taught(place, start, method, budget, seed):
    """(arguments of the training, the budget that its model is given), of a method on its untrained or trained model."""
    fixed = not start.learned_gates() or not METHODS[method].by_thresholds()
    looks = start.config.cascade
    own = start.config.budget if looks else min(1.0, mean_cost(start, place.batches))
    thresholds = bool(start.learned_gates()) and not fixed
    recipe = as_taught(place.args, method) if METHODS[method].learns else place.args
    args = replace(
        recipe,
        seed=seed,
        output_dir=str(place.kept(method, budget, seed)),
        tuning_budgets=[budget] if thresholds and not looks and recipe.freeze_gates_at < 1 else [],
        importance_images=place.board.images if METHODS[method].importance else 0,
        calibrate_first=thresholds,
        **_fitted_before(METHODS[method], start, place.board.images),
        looks_together=METHODS[method].together,
        save_strategy="no",
    )
    return args, own if fixed else budget


def _trainer(place, model, args, teacher):
    return DynViTTrainer(
        model=model,
        args=args,
        teacher=teacher,
        calibration_dataset=place.data.calibration,
        processing_class=place.processor,
        **place.data.for_trainer(),
    )


def _fitted_before(method, start, images):
    """Training arguments of a method whose heads and sub-layers are fitted in closed form: on how many images."""
    if not method.fitted:
        return {"harm_images": 0}
    bypasses = any(bypass_of(gates) for gates in start.gates)
    return {"harm_images": images, "harm_shares": list(WORKING), "bypass_images": images if bypasses else 0}
