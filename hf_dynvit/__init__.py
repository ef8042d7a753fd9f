"""Vision Transformers that spend computation per image, as a Hugging Face transformers plugin."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .model.configuration_dynvit import DynViTConfig
from .model.gate import LayerDecisions
from .model.modeling_dynvit import DynViTForImageClassification, DynViTModel
from .training.arguments import DynViTTrainingArguments
from .training.trainer import DynViTTrainer


__version__ = "0.1.0"

AutoConfig.register("dynvit", DynViTConfig)
AutoModel.register(DynViTConfig, DynViTModel)
AutoModelForImageClassification.register(DynViTConfig, DynViTForImageClassification)

__all__ = [
    "DynViTConfig",
    "DynViTForImageClassification",
    "DynViTModel",
    "DynViTTrainer",
    "DynViTTrainingArguments",
    "LayerDecisions",
]
