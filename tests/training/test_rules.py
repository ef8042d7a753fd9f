"""Gates that learn nothing leave the body to be tuned, packed from the first step; those with a rate refuse other budgets."""

from functools import partial

import pytest
import torch
from trainers import build_trainer, weights

from hf_dynvit import fit_importance, preset_arguments
from hf_dynvit.report.names import decides
from hf_dynvit.training.calibration import cost_range
from hf_dynvit.training.presets import gate_facts


@pytest.mark.parametrize("gates", ["evit", "tome", "random-tokens", [{"gate": "token", "mass": 0.7, "layers": [1]}]])
def test_the_body_is_tuned_packed_from_the_first_step(tiny_vit, tmp_path, gates):
    taught = preset_arguments(gates) if isinstance(gates, str) else {"freeze_gates_at": 0.5}
    trainer = build_trainer(tiny_vit, tmp_path, gates=gates, max_steps=3, **taught)
    before, layouts = weights(trainer.model), []
    trainer.model.register_forward_hook(lambda model, *_: layouts.append(model.layout) if model.training else None)
    trainer.train()
    assert layouts == ["packed"] * 3
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())
    assert 0.3 < trainer.evaluate()["eval_cost"] < 1
    assert decides(gate_facts(trainer.model)).startswith("rule: ")


def test_a_predictor_with_a_rate_is_taught_at_the_cost_of_its_rate_and_refuses_others(tiny_vit, tmp_path):
    taught = {"gates": "dynamicvit", "max_steps": 3, **preset_arguments("dynamicvit")}
    with pytest.raises(ValueError, match=r"a budget of 0.5 is out of reach: .* to between (0\.\d+) and \1"):
        build_trainer(tiny_vit, tmp_path, **taught).train()
    trainer = build_trainer(tiny_vit, tmp_path, **taught)
    least, _ = cost_range(trainer.model)
    trainer.model.set_budget(least)
    trainer.train()
    assert trainer.evaluate()["eval_cost"] == pytest.approx(least, abs=1e-3)
    assert decides(gate_facts(trainer.model)) == "learned token gates (dynamicvit)"


def test_a_predictor_samples_at_its_rate_from_the_first_step_to_the_last(tiny_vit, tmp_path):
    # So wide that a step moves its logits as far as those of a ViT-Ti.
    wide = partial(tiny_vit, 4, hidden_size=192, num_attention_heads=3, intermediate_size=768)
    taught = {"gates": "dynamicvit", "max_steps": 40, **preset_arguments("dynamicvit")}
    trainer = build_trainer(wide, tmp_path, learning_rate=1e-4, **{**taught, "gate_learning_rate": 1e-3})
    budget, _ = cost_range(trainer.model)
    trainer.model.set_budget(budget)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "cost" in entry]
    assert costs[0] == pytest.approx(budget, abs=0.1) and min(costs) > 0.8 * budget
    assert sum(costs) / 40 == pytest.approx(budget, abs=0.03) and trainer.schedule.noise() == 1.0


@pytest.mark.parametrize(
    "gates, options, noises",
    (
        ("avit", {}, (0.0, 0.0, 0.0)),
        ("diffrate", {}, (0.0, 0.0, 0.0)),
        ("dynamicvit", {}, (1.0, 1.0, 1.0)),
        ("adavit", {}, (1.0, 0.5, 0.0)),
        ("adavit", {"gate_noise_start": 0.8, "gate_noise_end": 0.2}, (0.8, 0.5, 0.2)),
    ),
)
def test_noise_is_annealed_from_its_start_to_its_end(tiny_vit, tmp_path, gates, options, noises):
    taught = {**preset_arguments(gates), "freeze_gates_at": 1.0, **options}
    trainer = build_trainer(partial(tiny_vit, 4), tmp_path, gates=gates, max_steps=8, **taught)
    found = []
    for step in (0, 4, 8):
        trainer.state.global_step, trainer.state.max_steps = step, 8
        found.append(trainer.objective.exploration(trainer.schedule.step()).noise)
    assert found == pytest.approx(noises)


def test_importance_is_for_scores_that_read_the_token(tiny_vit, tmp_path):
    images = torch.randn(2, 8, 3, 32, 32)
    gates = [{"gate": "token", "score": "linear", "threshold": 0.5, "layers": [0]}]
    gates += [{"gate": "token", "score": "contrast", "threshold": 0.5, "layers": [1]}]
    model = build_trainer(tiny_vit, tmp_path, gates=gates).model
    assert list(fit_importance(model, list(images))) == [0]
    assert model.learned_gates()[0].score.weight.abs().max() > 1e-3
