"""Claims about policy gradients: the published constants, exact expectations, isolation, and that policies learn."""

import itertools

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification, LayerDecisions
from hf_dynvit.model.gate import Exploration, LearnedGate, draw
from hf_dynvit.model.preset_gates import PRESET_GATES
from hf_dynvit.objectives.policy_gradient import (
    advantages,
    depth_weights,
    layer_returns,
    outcome,
    policy_loss,
    terminal_reward,
)
from hf_dynvit.objectives.shelf import build_objective
from hf_dynvit.training.arguments import DynViTTrainingArguments
from hf_dynvit.training.presets import PRESET_ARGUMENTS, preset_arguments


BLOCKS = [{"gate": "block", "layers": [1, 2], "value_width": 8}]


@pytest.mark.parametrize(
    ("layers", "first", "last", "total"),
    [(7, 0.0908, 0.1585, 0.798), (12, 0.0566, 0.1083, 0.874), (24, 0.0297, 0.0610, 0.934)],
)
def test_depth_weights_are_the_published_ones(layers, first, last, total):
    weights_ = depth_weights(layers)
    assert (weights_[0].item(), weights_[-1].item()) == pytest.approx((first, last), abs=1e-4)
    assert weights_.sum().item() == pytest.approx(total, abs=1e-3) and (weights_.diff() > 0).all()


def test_the_published_reward_of_the_full_correct_path():
    spent = depth_weights(12).sum()[None]
    assert terminal_reward(torch.ones(1), spent, price=3.0).item() == pytest.approx(-1.62, abs=5e-3)


def test_the_reward_of_blockdrop():
    rewards = terminal_reward(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 1.0, 0.5]), 0.0, "blockdrop", 5.0)
    assert rewards.tolist() == [0.75, 0.0, -5.0]


def test_returns_of_the_public_code_keep_the_sign_of_the_reward_alone():
    rewards = torch.tensor([1.0, 0.1, -0.3, -2.0])
    returns = layer_returns(rewards, torch.zeros(12, 4), 3.0, "dynavit", discount=0.9)
    assert_close(returns[:, 0], returns[:, 1], rtol=0, atol=1e-3)
    assert_close(returns[:, 2], returns[:, 3], rtol=0, atol=1e-3)
    assert_close(returns[:, 0], -returns[:, 2], rtol=0, atol=1e-3)
    assert (returns[0, 0].item(), returns[-1, 0].item()) == pytest.approx((-1.27, 1.79), abs=0.01)


def test_default_advantages_depend_on_the_magnitude_of_the_reward():
    rewards = torch.tensor([1.0, 0.1, -0.3, -2.0])
    advantage = advantages(layer_returns(rewards, torch.zeros(3, 4), 1.0), 0.0)
    assert advantage[0].diff().lt(0).all() and advantage.mean(1).abs().max() < 1e-6
    assert advantage.std().item() == pytest.approx(1.0)


def test_outcomes():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert outcome(logits, labels, "correct").tolist() == [1.0, 0.0]
    assert_close(outcome(logits, labels, "probability"), logits.softmax(-1)[:, 0])
    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5]])  # of one class for each image
    kind = "single_label_classification"
    assert outcome(logits, soft, "correct", kind).tolist() == [0.75, 0.5]
    assert_close(outcome(logits, soft, "probability", kind), (logits.softmax(-1) * soft).sum(1))


def test_returns_of_the_public_code_without_a_discount_are_rounding_errors_and_refused():
    with pytest.raises(ValueError, match="give one below 1, got 1.0"):
        build_objective("reinforce", {"returns": "dynavit"})
    assert build_objective("reinforce", {"returns": "dynavit", "discount": 0.9}).options.discount == 0.9


@pytest.mark.parametrize("returns", ["to-go", "terminal"])
def test_the_expected_reinforce_gradient_is_that_of_the_expected_reward(tiny_vit, returns):
    model = gated(tiny_vit(3), BLOCKS)
    pixel_values, price, batch = images(1), 0.7, 1
    parameters = [p for gate in model.modules() if isinstance(gate, LearnedGate) for p in gate.score.parameters()]
    exact, estimate = 0.0, 0.0
    for actions in itertools.product([False, True], repeat=2):
        keeps = [torch.tensor([[on, on]]) for on in actions]
        replay = [LayerDecisions(), *(LayerDecisions(sublayers=keep) for keep in keeps)]
        out = model(pixel_values, decisions=replay, gating="act")
        log_probs = torch.stack([out.decisions[layer].log_prob for layer in (1, 2)])  # (L, B)
        earned = out.logits.detach()[:, 0]  # any function of what ran
        spent = torch.tensor([[float(on)] for on in actions])
        rewards = terminal_reward(earned, spent.sum(0), price)
        probability = log_probs.sum(0).exp().mean()
        exact = exact + probability * rewards.mean()
        returned = layer_returns(rewards, spent, price, returns)
        advantage = advantages(returned, torch.full((2, batch), 0.3), normalise=False)  # any baseline
        estimate = estimate - probability.detach() * policy_loss(log_probs, advantage)
    expected = torch.autograd.grad(exact, parameters, retain_graph=True)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)
    for gradient, wanted in zip(torch.autograd.grad(estimate, parameters), expected, strict=True):
        assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_probabilities_are_bounded_and_units_that_are_not_there_do_not_count():
    logits = torch.tensor([[20.0, -20.0, 0.0]])
    _, log_prob, entropy = draw(logits, 0.8, torch.tensor([[True, False, True]]), torch.tensor([[1, 1, 0]]).bool())
    assert log_prob.item() == pytest.approx(2 * torch.tensor(0.8).log().item(), abs=1e-5)
    assert entropy.item() == pytest.approx(2 * 0.5004, abs=1e-3)


@pytest.mark.parametrize(
    "gates",
    [
        BLOCKS,
        [{"gate": "block", "granularity": "sublayer"}],
        [{"gate": "patch", "drop": True, "merge": True}, {"gate": "head"}, {"gate": "sublayer"}],
    ],
)
@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_policy_gradients_reach_gates_and_leave_the_backbone_untouched(tiny_vit, gates, layout):
    model = gated(tiny_vit(3), gates).train()
    model.layout = layout
    out = model(images(8), gating="act")
    log_probs = torch.stack([d.log_prob for d in out.decisions if d.log_prob is not None])
    (log_probs * torch.randn_like(log_probs)).sum().backward()
    for name, parameter in model.named_parameters():
        if "score" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None or not parameter.grad.any(), name


def test_a_drawn_decision_replayed_has_the_same_probability_and_gradients_in_both_layouts(tiny_vit):
    model = gated(tiny_vit(3), BLOCKS)
    pixel_values = images(6)
    model.layout = "packed"
    drawn = model(pixel_values, gating="act")
    assert 0 < torch.stack([d.sublayers for d in drawn.decisions[1:]]).float().mean() < 1
    gradients = []
    for model.layout in ("masked", "packed"):
        again = model(pixel_values, labels=torch.arange(6) % 5, decisions=drawn.decisions, gating="act")
        assert_close(again.logits, drawn.logits, rtol=0, atol=1e-4)
        for one, other in zip(again.decisions[1:], drawn.decisions[1:], strict=True):
            assert_close(one.log_prob, other.log_prob)
        gradients.append(torch.autograd.grad(again.loss, [p for p in model.vit.parameters()], allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert_close(
            torch.zeros(()) if one is None else one,
            torch.zeros_like(one) if other is None else other,
            rtol=0,
            atol=1e-4,
        )


def test_a_curriculum_keeps_early_layers_open(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "block"}])
    decisions = model(images(4), gating="act", exploration=Exploration(from_layer=2)).decisions
    assert [d.log_prob is not None for d in decisions] == [False, False, True]


def test_upfront_gates_all_read_what_enters_the_first_of_them(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "block", "upfront": True, "layers": [1, 2]}])
    for layout in ("masked", "packed"):
        out = run(model, layout, images(8, generator=torch.Generator().manual_seed(3)), output_hidden_states=True)
        for layer in (1, 2):
            gate = model.gates[layer]["sublayers"]
            with torch.no_grad():
                assert torch.equal(out.decisions[layer].sublayers, gate(out.hidden_states[1], "threshold"))


@pytest.mark.parametrize("preset", PRESET_GATES)
def test_every_preset_says_how_it_is_taught(preset, tmp_path):
    args = DynViTTrainingArguments(output_dir=str(tmp_path), **preset_arguments(preset))
    assert args.objective == PRESET_ARGUMENTS[preset]["objective"]
    assert preset_arguments("none") == {}


def test_a_mask_forbids_whatever_the_gates_say(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "block"}])
    pixel_values = images(4)
    model.config.layer_mask = [[True, True], [False, False], [True, False]]
    outs = [run(model, layout, pixel_values) for layout in ("masked", "packed")]
    assert_close(outs[0].logits, outs[1].logits, rtol=0, atol=1e-4)
    assert torch.equal(outs[0].cost, outs[1].cost)
    assert not outs[0].decisions[1].sublayers.any() and not outs[0].decisions[2].sublayers[:, 1].any()
    config = type(model.config)(**{**model.config.to_dict(), "layer_mask": model.config.layer_mask})
    assert DynViTForImageClassification(config).config.layer_mask == model.config.layer_mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [([[True, True]], "a pair .* for each of 3 layers"), ([[False, False]] * 3, "switches off everything")],
)
def test_a_bad_mask_is_refused(tiny_vit, mask, message):
    config = gated(tiny_vit(3), None).config
    with pytest.raises(Exception, match=message):
        type(config)(**{**config.to_dict(), "layer_mask": mask})


@pytest.mark.parametrize("reward", ["correct", "probability", "blockdrop"])
def test_a_label_that_the_loss_would_ignore_earns_no_reward_and_is_refused(reward):
    with pytest.raises(ValueError, match=r"needs the class of each image, from 0 on: got labels \[1, -100\]"):
        outcome(torch.eye(2), torch.tensor([1, -100]), reward)
