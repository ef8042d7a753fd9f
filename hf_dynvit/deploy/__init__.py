"""A model with gates where people deploy: exported to OpenVINO or ONNX, and predicting there."""

from .checks import FORMATS, check_export
from .export import export
from .runtime import DynViTRuntime


__all__ = ["FORMATS", "DynViTRuntime", "check_export", "export"]
