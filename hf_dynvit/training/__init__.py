"""Training: the ordinary Trainer, taught to train gates."""

import os

from .arguments import DynViTTrainingArguments
from .bypass import fit_bypass
from .calibration import calibrate, check_budgets
from .closed_form import fit_gates
from .harm import fit_harm
from .importance import fit_importance
from .metrics import compute_metrics
from .presets import FAITHFUL, PRESET_ARGUMENTS, gate_facts, preset_arguments, preset_of
from .starting_model import ModelArguments, load_base, load_model, load_teacher
from .trainer import DynViTTrainer
from .training_step import TrainingClock, TrainingStep


# Packed training meets new numbers of rows in every step, and in 16 bits oneDNN compiles a kernel for each. It keeps the last
# 1,024, too few for images of so many lengths; it reads this when the first product runs, so it is set before there is a model.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

__all__ = [
    "FAITHFUL",
    "PRESET_ARGUMENTS",
    "DynViTTrainer",
    "DynViTTrainingArguments",
    "ModelArguments",
    "TrainingClock",
    "TrainingStep",
    "calibrate",
    "check_budgets",
    "compute_metrics",
    "fit_bypass",
    "fit_gates",
    "fit_harm",
    "fit_importance",
    "gate_facts",
    "load_base",
    "load_model",
    "load_teacher",
    "preset_arguments",
    "preset_of",
]
