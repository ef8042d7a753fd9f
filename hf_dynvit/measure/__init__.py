"""What a model costs on this machine: time, memory, and where that was measured."""

from .files import check_weights, read_json, sign_weights, weights_digest, write_json
from .forwards import DTYPES, measure
from .provenance import measured_on
from .speed import Speed
from .timing import interleaved_medians, layer_latencies
from .trained_models import open_models, time_batches
from .usage import UsageMeter


__all__ = [
    "DTYPES",
    "Speed",
    "UsageMeter",
    "check_weights",
    "interleaved_medians",
    "layer_latencies",
    "measure",
    "measured_on",
    "open_models",
    "read_json",
    "sign_weights",
    "time_batches",
    "weights_digest",
    "write_json",
]
