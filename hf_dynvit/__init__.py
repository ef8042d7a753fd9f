"""Vision Transformers that spend computation per image, as a Hugging Face transformers plugin."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .agents import Agent, register_agent
from .model import (
    DynViTConfig,
    DynViTForImageClassification,
    DynViTModel,
    Gate,
    LayerDecisions,
    LearnedGate,
    Scorer,
    register_gate,
    register_host,
    register_scorer,
)
from .objectives import Objective, register_objective
from .search import burn_in, search
from .training import (
    DynViTTrainer,
    DynViTTrainingArguments,
    calibrate,
    fit_bypass,
    fit_gates,
    fit_harm,
    fit_importance,
    preset_arguments,
)
from .training.methods import Method, register_method


__version__ = "0.1.0"

AutoConfig.register("dynvit", DynViTConfig)
AutoModel.register(DynViTConfig, DynViTModel)
AutoModelForImageClassification.register(DynViTConfig, DynViTForImageClassification)

__all__ = [
    "Agent",
    "DynViTConfig",
    "DynViTForImageClassification",
    "DynViTModel",
    "DynViTTrainer",
    "DynViTTrainingArguments",
    "Gate",
    "LayerDecisions",
    "LearnedGate",
    "Method",
    "Objective",
    "Scorer",
    "burn_in",
    "calibrate",
    "fit_bypass",
    "fit_gates",
    "fit_harm",
    "fit_importance",
    "preset_arguments",
    "register_agent",
    "register_gate",
    "register_host",
    "register_method",
    "register_objective",
    "register_scorer",
    "search",
]
