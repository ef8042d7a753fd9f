"""A model with gates where people deploy: exported to OpenVINO or ONNX and predicting there, or compiled by PyTorch."""

from .checks import FORMATS, check_export
from .compiled import CompiledDynViT
from .export import export
from .runtime import DynViTRuntime


__all__ = ["FORMATS", "CompiledDynViT", "DynViTRuntime", "check_export", "export"]
