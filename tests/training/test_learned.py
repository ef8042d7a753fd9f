"""Claims about what results say of gates: whether they have learned is read from their weights."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.budgets import shift_gates
from hf_dynvit.model.gate import LearnedGate
from hf_dynvit.report.names import decides
from hf_dynvit.training.metrics import compute_metrics
from hf_dynvit.training.presets import gate_facts


def gates_in(model):
    return [module for module in model.modules() if isinstance(module, LearnedGate)]


def test_fresh_gates_have_not_learned_wherever_their_thresholds_are(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_hidden_layers=12), gates="adavit")
    shift_gates(gates_in(model), -2.5)
    facts = gate_facts(model)
    assert facts["learned"] == {"patch": 0.0, "sublayer": 0.0} and facts["preset"] == "adavit"
    assert facts["gates"] == model.config.gates
    assert decides(facts) == "rule: novelty + merge; fixed sub-layer gates (adavit)"


def test_one_score_that_has_moved_is_a_gate_that_has_learned(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_hidden_layers=12), gates="adavit")
    with torch.no_grad():
        gates_in(model)[-1].score.weight[0, 3] = -0.25
    facts = gate_facts(model)
    assert facts["learned"]["sublayer"] == 0.25 and facts["learned"]["patch"] == 0.0


def test_without_gates_or_at_random_nothing_learns(tiny_vit):
    assert gate_facts(DynViTForImageClassification.from_vit(tiny_vit())) == {
        "gates": None,
        "preset": None,
        "learned": {},
    }
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "random", "rate": 0.5}])
    assert gate_facts(model)["learned"] == {} and decides(gate_facts(model)) == "rule: random"


def test_metrics_say_how_the_cost_spreads_over_images():
    cost = np.array([0.25, 0.5, 0.5, 0.75], dtype=np.float32)
    found = compute_metrics(EvalPrediction((np.eye(4, 6, dtype=np.float32), cost), np.arange(4)))
    spread = [found[name] for name in ("cost", "cost_min", "cost_max", "cost_std")]
    assert spread == pytest.approx([0.5, 0.25, 0.75, np.std(cost)])
