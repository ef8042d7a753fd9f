"""What a model costs on this machine: time, memory, and where that was measured."""

from .files import check_weights, read_json, sign_weights, weights_digest, write_json
from .forwards import DTYPES, measure
from .latency import LatencyTable
from .layer_times import clocked, measure_latencies
from .provenance import measured_on
from .speed import Speed
from .timing import interleaved_medians
from .trained_models import open_models, time_batches
from .usage import UsageMeter


__all__ = [
    "DTYPES",
    "LatencyTable",
    "Speed",
    "UsageMeter",
    "check_weights",
    "clocked",
    "interleaved_medians",
    "measure",
    "measure_latencies",
    "measured_on",
    "open_models",
    "read_json",
    "sign_weights",
    "time_batches",
    "weights_digest",
    "write_json",
]
