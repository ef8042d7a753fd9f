"""The rate objective: each gate with a fixed number is held to it in training, not all of them together."""

from functools import partial

import pytest
import torch
from trainers import build_trainer, weights

from hf_dynvit import preset_arguments
from hf_dynvit.objectives.rate import RateObjective
from hf_dynvit.training.calibration import cost_range


def predictors(*layers, **amount):
    return {"gate": "token", "score": "predictor", "layers": list(layers), **amount}


def taught(tiny_vit, folder, gates, **options):
    trainer = build_trainer(tiny_vit, folder, gates=gates, **{**preset_arguments("dynamicvit"), **options})
    trainer.model.set_budget(cost_range(trainer.model)[0])
    return trainer


def test_it_is_the_mean_over_images_and_gates_of_squared_distances_from_the_rates(tiny_vit, tmp_path):
    trainer = taught(tiny_vit, tmp_path, [predictors(0, keep=0.7), predictors(1, top=5)], rate_weight=3.0)
    outputs = trainer.model.train()(torch.randn(6, 3, 32, 32), gating="sample")
    first, second = (outputs.decisions[layer].attention_tokens[:, 1:] for layer in (0, 1))  # (6, 16)
    assert (second <= first).all()  # what has left stays away
    by_hand = ((first.mean(1) - 12 / 16) ** 2).mean() / 2 + ((second.mean(1) - 5 / 16) ** 2).mean() / 2
    loss = trainer.objective.loss(trainer.model, {}, outputs, None)
    torch.testing.assert_close(loss, 3.0 * by_hand)
    loss.backward()
    assert all(gate.score.weight.grad.abs().sum() > 0 for gate in trainer.model.learned_gates())


@pytest.mark.parametrize(
    "gates, mask",
    (
        ([predictors(0, keep=0.7), predictors(1, keep=0.5)], None),
        ([predictors(0, top=5), predictors(1, top=9)], None),  # more than is left
        ([predictors(0, top=5), predictors(1, keep=0.5, rest="merge")], None),
        ([predictors(0, 1, keep=0.5, rest="fuse")], None),
        ([predictors(0, 1, keep=0.5, rest="pass")], None),
        ([predictors(0, 1, 2, keep=0.5)], [[False, False], [True, True], [True, False], [True, True]]),
    ),
)
def test_the_rates_are_what_evaluation_keeps(tiny_vit, tmp_path, gates, mask):
    trainer = taught(partial(tiny_vit, 4), tmp_path, gates)
    model, pixels = trainer.model.train(), torch.randn(3, 3, 32, 32)
    model.config.layer_mask = mask
    outputs = model(pixels, gating="sample")
    kept = model.eval()(pixels).decisions
    kept = [decision.attention_tokens if decision else None for decision in kept]
    outputs.decisions = [
        sampled if keep is None else sampled._replace(attention_tokens=keep.float())
        for sampled, keep in zip(outputs.decisions, kept, strict=True)
    ]
    assert trainer.objective.loss(model, {}, outputs, None) == 0.0


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
    with pytest.raises(ValueError, match="freeze_gates_at 0.0 leaves no step for it"):
        build_trainer(tiny_vit, tmp_path, gates="dynamicvit", objective="rate", freeze_gates_at=0.0)


@pytest.mark.parametrize("objective", ("rate", "auxiliary"))
def test_the_dense_twin_is_trained_by_the_same_recipe(tiny_vit, tmp_path, objective):
    trainer = build_trainer(tiny_vit, tmp_path, gates=None, objective=objective, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())


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
