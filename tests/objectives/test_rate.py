"""The rate objective: each gate with a fixed number is held to it in training, not all of them together."""

import pytest
import torch
from trainers import build_trainer

from hf_dynvit import preset_arguments
from hf_dynvit.objectives.rate import RateObjective
from hf_dynvit.training.calibration import cost_range


def predictors(*layers, **amount):
    return {"gate": "token", "score": "predictor", "layers": list(layers), **amount}


def taught(tiny_vit, folder, gates, **options):
    trainer = build_trainer(tiny_vit, folder, gates=gates, **{**preset_arguments("dynamicvit"), **options})
    trainer.model.set_budget(cost_range(trainer.model)[0])
    return trainer


def test_it_is_the_mean_over_images_and_gates_of_squared_distances_from_what_evaluation_keeps(tiny_vit, tmp_path):
    gates = [predictors(0, keep=0.7), predictors(1, top=5)]
    trainer = taught(tiny_vit, tmp_path, gates, rate_weight=3.0)
    model = trainer.model.train()
    model.layout, pixels = "masked", torch.randn(6, 3, 32, 32)
    outputs = model(pixels, gating="sample")
    first, second = (outputs.decisions[layer].attention_tokens[:, 1:] for layer in (0, 1))  # (6, 16)
    assert (second <= first).all()  # what has left stays away
    by_hand = ((first.mean(1) - 12 / 16) ** 2).mean() / 2 + ((second.mean(1) - 5 / 16) ** 2).mean() / 2
    loss = trainer.objective.loss(model, {}, outputs, None)
    torch.testing.assert_close(loss, 3.0 * by_hand)
    model.eval()
    kept = [decision.attention_tokens[:, 1:].float().mean().item() for decision in model(pixels).decisions[:2]]
    assert kept == [12 / 16, 5 / 16]  # the rates that it aims at are those of evaluation
    loss.backward()
    assert all(gate.score.weight.grad.abs().sum() > 0 for gate in model.learned_gates())


def test_tokens_that_pass_by_come_back_for_the_next_gate(tiny_vit, tmp_path):
    trainer = taught(tiny_vit, tmp_path, [predictors(0, 1, keep=0.5, rest="pass")])
    outputs = trainer.model.train()(torch.randn(4, 3, 32, 32), gating="sample")
    by_hand = [((outputs.decisions[i].attention_tokens[:, 1:].mean(1) - 0.5) ** 2).mean() for i in (0, 1)]
    loss = trainer.objective.loss(trainer.model, {}, outputs, None)
    torch.testing.assert_close(loss, 2.0 * sum(by_hand) / 2)


def test_gates_that_begin_far_from_their_rates_are_each_led_there(tiny_vit, tmp_path):
    gates = [predictors(0, keep=0.7), predictors(1, keep=0.5)]
    trainer = taught(
        tiny_vit, tmp_path, gates, max_steps=60, gate_learning_rate=5e-2, rate_weight=40.0, logging_steps=10
    )
    with torch.no_grad():  # together they cost what they should
        for gate, away in zip(trainer.model.learned_gates(), (-1.5, 1.5), strict=True):
            gate.score.bias += away
    trainer.train()
    errors = [entry["rate_error"] for entry in trainer.state.log_history if "rate_error" in entry]
    assert errors[0] > 0.12 and max(errors[2:]) < 0.08


def test_frozen_gates_are_not_taught_and_the_preset_takes_it(tiny_vit, tmp_path):
    trainer = taught(tiny_vit, tmp_path, "dynamicvit")
    assert isinstance(trainer.objective, RateObjective)
    outputs = trainer.model.train()(torch.randn(2, 3, 32, 32), gating="threshold")
    assert trainer.objective.loss(trainer.model, {}, outputs, None) == 0.0


@pytest.mark.parametrize(
    "gates",
    (
        "evit",
        [predictors(1, threshold=0.5)],
        [predictors(0, keep=0.7), {"gate": "sublayer", "layers": [1]}],
        [predictors(0, keep=0.7), {"gate": "tome", "layers": [1]}],
    ),
)
def test_gates_that_keep_no_fixed_number_are_refused(tiny_vit, tmp_path, gates):
    with pytest.raises(ValueError, match="objective 'rate' is for gates of tokens that keep a number of them"):
        build_trainer(tiny_vit, tmp_path, gates=gates, objective="rate")
