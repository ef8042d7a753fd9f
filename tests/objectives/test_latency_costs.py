"""`cost_weights: latency`: the reward sees milliseconds by a table of the device, which a resumed training keeps."""

import json
from dataclasses import asdict

import pytest
import torch
from models import images, latency_table
from trainers import build_trainer

from hf_dynvit.objectives import reinforce


BLOCKS = [{"gate": "block", "layers": [1, 2], "value_width": 8}]


def timed_trainer(tiny_vit, folder, monkeypatch, table=None, gates=BLOCKS, **options):
    measured = []

    def measure(model, pixel_values):
        measured.append(pixel_values.shape)
        return latency_table(model, **(table or {}))

    monkeypatch.setattr(reinforce, "measure_latencies", measure)
    options = {"objective": "reinforce", "cost_weights": "latency", "calibration_images": 0} | options
    trainer = build_trainer(lambda **fields: tiny_vit(3, **fields), folder, gates=gates, **options)
    return trainer, measured


@pytest.mark.parametrize("pays", [True, False])
def test_a_policy_skips_what_takes_time_and_nothing_where_skipping_takes_longer(tiny_vit, tmp_path, monkeypatch, pays):
    dear = {"gates": [{"layers": [1, 2], "open": [0.0, 0.0], "closed": [12.0, 12.0]}]}
    options = {"max_steps": 40, "price": 5.0, "price_gain": 0.0}
    trainer, _ = timed_trainer(tiny_vit, tmp_path, monkeypatch, None if pays else dear, **options)
    trainer.train()
    costs = [entry["cost"] for entry in trainer.state.log_history if "loss" in entry]
    first, last = sum(costs[:5]) / 5, sum(costs[-5:]) / 5
    assert last < first - 0.3 if pays else last > 0.85  # draws explore


def test_each_layer_costs_its_milliseconds_over_the_dense_models(tiny_vit, tmp_path, monkeypatch):
    gates = [{"gate": "patch", "drop": True, "layers": [0]}, {"gate": "block", "layers": [2]}]
    trainer, _ = timed_trainer(tiny_vit, tmp_path, monkeypatch, gates=gates, baseline="none")
    objective, model = trainer.objective, trainer.model
    objective.load_state_dict({})
    out = model(images(16), gating="act")
    tokens = out.decisions[0].attention_tokens.sum(1)
    on = out.decisions[2].sublayers[:, 0].float()
    assert tokens.float().std() > 0 and 0 < on.mean() < 1
    by_tokens = 0.3 * tokens  # of the made-up table
    first = by_tokens + torch.where(tokens < 17, 1.0, 0.5)
    last = torch.where(on > 0, by_tokens + 0.5, 1.0)
    torch.testing.assert_close(objective._spent(out), torch.stack([first, by_tokens, last]) / 17.3)


def test_a_training_measures_once_for_single_images_and_keeps_its_table(tiny_vit, tmp_path, monkeypatch):
    trainer, measured = timed_trainer(tiny_vit, tmp_path, monkeypatch, max_steps=1)
    trainer.train()
    assert measured == [(1, 3, 32, 32)]
    (callback,) = [call for call in trainer.callback_handler.callbacks if type(call).__name__ == "PolicyObjective"]
    saved = json.loads(json.dumps(callback.state()))
    saved["attributes"]["latencies"]["rest"] = 7.0
    trainer.state.stateful_callbacks["PolicyObjective"] = saved
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert asdict(trainer.objective.latencies) == saved["attributes"]["latencies"] and len(measured) == 1
    assert json.loads(json.dumps(callback.state())) == saved


def test_a_training_that_began_with_latencies_of_whole_layers_goes_on_with_them(tiny_vit, tmp_path, monkeypatch):
    trainer, measured = timed_trainer(tiny_vit, tmp_path, monkeypatch)
    trainer.objective.load_state_dict({"running": None, "layer_weights": [0.5, 0.25, 0.25]})
    assert not measured and trainer.objective.latencies is None
    out = trainer.model(images(4), gating="act")
    open_layers = torch.stack([torch.ones(4), *(decision.sublayers[:, 0].float() for decision in out.decisions[1:])])
    torch.testing.assert_close(trainer.objective._spent(out), open_layers * torch.tensor([[0.5], [0.25], [0.25]]))


@pytest.mark.parametrize("weights", ["uniform", "depth"])
def test_a_training_goes_on_with_the_cost_weights_that_it_is_given(tiny_vit, tmp_path, monkeypatch, weights):
    trainer, measured = timed_trainer(tiny_vit, tmp_path, monkeypatch)
    trainer.objective.options.cost_weights = weights
    trainer.objective.load_state_dict({"running": None, "layer_weights": [0.5, 0.25, 0.25]})
    assert not measured and (trainer.objective.layer_weights is None) == (weights == "uniform")


def test_the_device_is_measured_and_nothing_else_changes(tiny_vit, tmp_path):
    options = {"objective": "reinforce", "cost_weights": "latency", "calibration_images": 0, "gates": BLOCKS}
    trainer = build_trainer(lambda **fields: tiny_vit(3, **fields), tmp_path, **options)
    trainer.model.train()
    trainer.model.layout = "packed"
    before = torch.get_rng_state()
    trainer.objective.load_state_dict({})
    table = trainer.objective.latencies
    assert table.batch_size == 1 and table.tokens[-1] == 17 and table.gates[0]["layers"] == [1, 2]
    assert table.dense(trainer.model) > 0
    assert trainer.model.training and trainer.model.layout == "packed"
    assert torch.equal(torch.get_rng_state(), before)
