"""What cannot be exported is refused by name, before any work, with what to use instead."""

import importlib.util

from ..model.gate_block import BlockGate, SublayerGate
from ..model.gate_halting import HaltingGate
from ..model.gate_head import HeadGate
from ..model.gate_merge import MergeGate
from ..model.gate_patch import PatchGate
from ..model.gate_pitome import PitomeGate
from ..model.gate_token import LearnedTokenGate, TokenGate
from ..model.gate_tome import TomeGate
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.scorers import RandomScorer
from ..training.fixed import check_fixable


FORMATS = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # what each needs
BATCHES = ("one", "dynamic")
QUANTIZED = (None, "int8")
MERGES = ("own", "fixed")
DROPS = (PatchGate, MergeGate, TomeGate, PitomeGate, TokenGate, LearnedTokenGate, HaltingGate)
SWITCHES = (BlockGate, SublayerGate)
MASKED = 'in PyTorch, or exported in the masked layout (model.layout = "masked", torch.export), where nothing is saved'


def check_export(model, format, batch="one", quantize=None, calibration=None, merges="own"):
    """Refuse what cannot be exported.

    Raises:
        TypeError: no classifier with gates. ValueError: an unknown word, or a gate that has no exported form.
        ImportError: a package that is missing.
    """
    for name, value, known in (
        ("format", format, list(FORMATS)),
        ("batch", batch, list(BATCHES)),
        ("quantize", quantize, list(QUANTIZED)),
        ("merges", merges, list(MERGES)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    check_packages(format, quantize)
    if quantize and format == "openvino" and calibration is None:
        raise ValueError("int8 for OpenVINO needs calibration images, got None")
    check_model(model)
    if merges == "fixed":
        check_fixable(model)
        if calibration is None:
            raise ValueError("fixed merges need calibration images, whose mean they are, got None")
    if quantize and format == "onnx" and batch == "one" and all("sublayers" in gates for gates in model.gates):
        raise ValueError(
            "int8 for ONNX Runtime leaves what stands in a branch in float32, and gates of every layer make one: export this "
            'model for batch "dynamic", or for OpenVINO'
        )


def check_packages(format, quantize=None):
    """Raise ImportError for a format, in 8 bits or not, that needs a package which is missing."""
    needed = FORMATS[format] + (("nncf",) if quantize and format == "openvino" else ())
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"to export for {format}, {missing} must be installed: pip install 'hf_dynvit[deploy]'")


def check_model(model):
    """Refuse a model whose gates or host have no exported form, as `check_export`."""
    if not isinstance(model, DynViTForImageClassification) or model.num_labels < 1:
        kind, own = type(model), DynViTForImageClassification
        hint = ", of the code that came with it: load it with that of hf_dynvit" * (
            kind is not own and kind.__name__ == own.__name__
        )
        raise TypeError(f"only a {own.__name__} with classes can be exported, got {kind.__name__}{hint}")
    if not model.host.protects_first():
        raise ValueError(f"only hosts whose protected tokens come first can be exported, got {model.host.protected}")
    if model.config.last_layer is not None and "sublayers" in model.gates[-1]:
        raise ValueError(
            f"last_layer {model.config.last_layer!r} with a gate of sub-layers in the last layer has no exported form: set "
            "model.config.last_layer = None"
        )
    drops = any(gate.drop for gates in model.gates for gate in gates.values())
    for layer, gates in enumerate(model.gates):
        for gate in gates.values():
            reason = _why_not(gate, drops)
            if reason:
                raise ValueError(f"{type(gate).__name__} of layer {layer} cannot be exported: {reason}")


def _why_not(gate, drops):
    """Why a gate cannot be exported, in a model that `drops` tokens or does not; None: it can."""
    kind = type(gate)
    if kind in DROPS:
        by_score = isinstance(gate, TokenGate)
        if not gate.drop:
            use = "rest: drop, merge or fuse" if by_score else "drop: true"
            return f"its tokens come back in later layers. Use {use}, or the model {MASKED}"
        if by_score and isinstance(gate.scorer, RandomScorer):
            return f"its scores are drawn anew in every forward. Use another score, or the model {MASKED}"
        if gate.reads_all:
            return f"its scores depend on tokens that are gone. Use another score, or the model {MASKED}"
        return None
    if kind is HeadGate:
        return None
    if kind not in SWITCHES:
        known = sorted(known.__name__ for known in (*DROPS, HeadGate, *SWITCHES) if known is not LearnedTokenGate)
        return f"there are exported forms of {known} alone. Use one of these, or the model {MASKED}"
    if drops and gate.reads_all:
        return f"it reads the mean of all tokens, and those that are dropped are gone. Use pool: cls, or the model {MASKED}"
    return None
