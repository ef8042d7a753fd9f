"""What must not change: saved models, names of weights, agents' checkpoints and tables, against files of an earlier day."""

import json

import pytest
import torch
from agent_models import agent_trainer, flat
from models import GATE_SETS
from places import FROZEN
from recipe_place import report
from torch.testing import assert_close
from transformers import AutoModelForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.agents.shelf import AGENTS
from hf_dynvit.model.preset_gates import PRESET_GATES


MODELS = sorted(path.name for path in (FROZEN / "models").iterdir())
GATE_WEIGHTS = json.loads((FROZEN / "gate_weights.json").read_text())
AGENT_STATE = json.loads((FROZEN / "agent_state.json").read_text())


def frozen_pixels():
    """(4, 3, 32, 32), the same on every machine."""
    return torch.linspace(-1, 1, 4 * 3 * 32 * 32).mul(37).sin().reshape(4, 3, 32, 32)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_gives_the_same_logits_and_cost(name, layout):
    folder = FROZEN / "models" / name
    expected = json.loads((folder / "expected.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.layout = layout
    with torch.no_grad():
        outputs = model(frozen_pixels())
    assert_close(outputs.logits, torch.tensor(expected["logits"]), rtol=0, atol=2e-5)
    assert_close(outputs.cost, torch.tensor(expected["cost"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_saved_with_the_configuration_that_it_had(name, tmp_path):
    folder = FROZEN / "models" / name
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    versions = {"transformers_version": None}
    assert after | versions == before | versions


@pytest.mark.parametrize("name", sorted(GATE_WEIGHTS))
def test_gate_weights_keep_their_names(tiny_vit, name):
    preset = name.removeprefix("preset ")
    gates = GATE_SETS[name] if name in GATE_SETS else preset
    model = DynViTForImageClassification.from_vit(tiny_vit(2 if name in GATE_SETS else 12), gates=gates)
    assert sorted(key for key in model.state_dict() if key.startswith("gates.")) == GATE_WEIGHTS[name]


def test_every_gate_set_preset_and_agent_is_frozen():
    assert GATE_SETS.keys() | {f"preset {name}" for name in PRESET_GATES} == GATE_WEIGHTS.keys()
    assert AGENTS.keys() == AGENT_STATE.keys()


@pytest.mark.parametrize("agent", sorted(AGENT_STATE))
def test_a_checkpoint_of_an_agent_keeps_its_keys(tiny_vit, tmp_path, agent):
    agent_trainer(tiny_vit, tmp_path, agent, save_strategy="steps", save_steps=8).train()
    saved = torch.load(tmp_path / "checkpoint-8" / "agent.pt", weights_only=True)
    assert sorted(flat(saved)) == AGENT_STATE[agent]


def test_the_tables_of_fixed_results_keep_their_text():
    results = [report.read(path) for path in sorted((FROZEN / "results").glob("*.json"))]
    assert report.render(results) + "\n" == (FROZEN / "report.md").read_text()
    shown = "\n\n".join(filter(None, (part(results) for part in report.FRONTS.values())))
    assert shown + "\n" == (FROZEN / "front.md").read_text()
