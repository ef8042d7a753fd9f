"""The model that travels to the Hub: configuration, layers in both layouts, gates, hosts, cost."""

from .configuration_dynvit import DynViTConfig
from .convert import load_vit
from .cost import dense_macs, layer_costs, layer_shares, stem_macs
from .decisions import UNTOUCHED, Action, LayerDecisions, TokenState
from .gate import Exploration, Gate, LearnedGate, Score
from .gate_block import BlockGate
from .gate_random import RandomGate
from .gates import GATES, register_gate
from .host import Host, LayerParts, Sizes, host_of, register_host
from .kernels import kernels_loaded
from .modeling_dynvit import DynViTForImageClassification, DynViTModel
from .prepack import can_prepack, is_prepacked
from .preset_gates import PRESET_GATES, preset_gates
from .scorers import SCORERS, Scorer, register_scorer


__all__ = [
    "GATES",
    "PRESET_GATES",
    "SCORERS",
    "UNTOUCHED",
    "Action",
    "BlockGate",
    "DynViTConfig",
    "DynViTForImageClassification",
    "DynViTModel",
    "Exploration",
    "Gate",
    "Host",
    "LayerDecisions",
    "LayerParts",
    "LearnedGate",
    "RandomGate",
    "Score",
    "Scorer",
    "Sizes",
    "TokenState",
    "can_prepack",
    "dense_macs",
    "host_of",
    "is_prepacked",
    "kernels_loaded",
    "layer_costs",
    "layer_shares",
    "load_vit",
    "preset_gates",
    "register_gate",
    "register_host",
    "register_scorer",
    "stem_macs",
]
