"""AdaViT's gates decide as specified: how often, when, where they sit, and without numerical accidents."""

import math

import pytest
import torch
from models import GATE_SETS, gated, images

from hf_dynvit import DynViTConfig, DynViTForImageClassification
from hf_dynvit.model.gate import sample_straight_through
from hf_dynvit.model.gates import GATES, build_gates
from hf_dynvit.model.preset_gates import PRESET_GATES, preset_gates
from hf_dynvit.training.presets import PRESET_ARGUMENTS


DRAWS = 200_000


def frequency(logit, tau, threshold):
    return sample_straight_through(torch.full((DRAWS,), float(logit)), tau, threshold).mean().item()


def within(probability):
    """Five standard deviations of a frequency over DRAWS draws."""
    return pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / DRAWS))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 0.405, 3.0])
@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_sampled_frequency(logit, tau, threshold):
    shift = tau * math.log(threshold / (1 - threshold))
    assert frequency(logit, tau, threshold) == within(1 / (1 + math.exp(shift - logit)))


def test_frequencies_of_the_published_settings():
    assert frequency(0.0, 5.0, 0.6) == pytest.approx(0.116, abs=0.004)
    assert frequency(0.405, 5.0, 0.6) == pytest.approx(0.165, abs=0.004)
    for tau in (0.1, 1.0, 5.0):  # at threshold 0.5 the temperature does not change what is sampled
        assert frequency(1.0, tau, 0.5) == within(1 / (1 + math.exp(-1.0)))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_samples_are_exactly_zero_or_one_with_a_bounded_gradient(threshold):
    logits = torch.linspace(-80, 80, DRAWS, requires_grad=True)
    keep = sample_straight_through(logits, 5.0, threshold)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(keep.sum(), logits)
    assert 0 < gradient.max() <= 0.05
    assert gradient.min() >= 0


@pytest.mark.parametrize("name", ["patch", "head", "sublayer"])
@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_evaluation_keeps_exactly_where_the_logit_exceeds_that_of_the_threshold(tiny_vit, name, threshold):
    gate = GATES[name](tiny_vit().config, threshold=threshold, tau=5.0)
    torch.nn.init.zeros_(gate.score.weight)
    limit = math.log(threshold / (1 - threshold))
    tokens = torch.randn(3, 17, 32)
    for bias, kept in ((limit - 1e-3, False), (limit + 1e-3, True)):
        torch.nn.init.constant_(gate.score.bias, bias)
        keep = gate(tokens, "threshold")
        assert keep.dtype == torch.bool
        assert (keep[:, 1:] == kept).all()  # without [CLS], where the units are patches
        assert torch.equal(keep, gate(tokens, "threshold"))


@pytest.mark.parametrize("gating", ["threshold", "sample"])
@pytest.mark.parametrize("gate", [{"gate": "patch"}, {"gate": "random", "rate": 0.0}])
def test_cls_is_always_kept(tiny_vit, gate, gating):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=[gate])
    for layer in model.gates:
        for module in layer.modules():
            if hasattr(module, "score"):
                torch.nn.init.constant_(module.score.bias, -1e4)
    with torch.no_grad():
        decisions = model(images(3), gating=gating).decisions
    for decision in decisions:
        assert decision.attention_tokens[:, 0].all() and not decision.attention_tokens[:, 1:].any()


def gate_parameters(name, **sizes):
    config = DynViTConfig(**sizes)
    config.gates = preset_gates(name, config)
    return sum(p.numel() for p in build_gates(config).parameters())


def test_official_preset_has_the_published_number_of_parameters():
    assert gate_parameters("adavit-official", hidden_size=384, num_attention_heads=6, intermediate_size=1536) == 38_500
    assert gate_parameters("adavit-official") == 127_654  # ViT-B/16


def test_official_preset_leaves_heads_and_sublayers_of_the_first_block_alone(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates="adavit-official")
    first, *others = (sorted({slot for gate in layer.values() for slot in gate.slots}) for layer in model.gates)
    assert first == ["attention_tokens", "mlp_tokens"]
    assert others == [["attention_tokens", "heads", "mlp_tokens", "sublayers"]] * 3
    for layer in model.gates:
        assert all(gate.tau == 5.0 for gate in layer.values())
        assert layer["attention_tokens"].threshold == 0.6
        assert all(gate.threshold == 0.5 for slot, gate in layer.items() if slot != "attention_tokens")


RULES = ("evit", "topk", "ats", "tome", "random-tokens", "pitome")


@pytest.mark.parametrize("preset", [name for name in PRESET_GATES if name not in RULES])
def test_gates_of_presets_that_learn_start_open_and_can_learn(tiny_vit, preset):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=preset)
    with torch.no_grad():
        decisions = model(images(4)).decisions
    opened = all(keep.all() for decision in decisions for keep in decision.keeps().values())
    assert opened or preset in ("dynamicvit", "cropr")  # whose numbers are fixed from the start
    acts = PRESET_ARGUMENTS[preset]["objective"] == "reinforce"
    out = model.train()(images(4), labels=torch.arange(4), gating="act" if acts else "sample")
    policies = [d.log_prob.sum() + d.value.sum() for d in out.decisions if d.log_prob is not None]
    (out.loss + out.cost.mean() + sum(policies)).backward()
    for name, parameter in model.gates.named_parameters():
        # The rest of a predictor when the last map has left 0, a bypass when something is skipped.
        reached = (preset != "dynamicvit" or ".score." in name) and ".bypass." not in name
        assert parameter.grad is not None and (parameter.grad.abs().sum() > 0) == reached, name


@pytest.mark.parametrize("preset", RULES)
def test_presets_that_learn_nothing_say_so_and_save_from_the_start(tiny_vit, preset):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates=preset)
    assert model.learned_gates() == [] and not list(model.gates.parameters())
    with torch.no_grad():
        assert (model(images(4)).cost < 0.95).all()


def test_one_decision_of_a_block_gate_holds_for_attention_and_mlp(tiny_vit):
    model = gated(tiny_vit(), GATE_SETS["patch on block"])
    for gating in ("threshold", "sample"):
        model.layout = "masked"
        for decision in model(images(3), gating=gating).decisions:
            assert torch.equal(decision.attention_tokens, decision.mlp_tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [6e4, -6e4])
@pytest.mark.parametrize("gates", ["all", "all official"])
def test_extreme_logits_give_no_nan(tiny_vit, gates, bias, dtype):
    model = gated(tiny_vit(), GATE_SETS[gates])
    for layer in model.gates:
        for gate in layer.values():
            torch.nn.init.constant_(gate.score.bias, bias)
    model.to(dtype)
    for layout, gating in (("masked", "threshold"), ("packed", "threshold"), ("masked", "sample")):
        model.layout = layout
        out = model(images(3), labels=torch.arange(3), gating=gating)
        assert out.logits.isfinite().all() and out.cost.isfinite().all()
        kept = torch.cat([d.attention_tokens[:, 1:] for d in out.decisions]).float().mean()
        assert kept == (bias > 0)
    (out.loss + out.cost.mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("unit, slot", [("patch", "mlp_tokens"), ("head", "heads"), ("sublayer", "sublayers")])
@pytest.mark.parametrize("training", [True, False])
def test_random_gates_keep_their_rate_in_training_and_evaluation(tiny_vit, unit, slot, training):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "random", "unit": unit, "rate": 0.3}])
    with torch.no_grad():
        decisions = model.train(training)(images(1024)).decisions
    keep = torch.cat([getattr(decision, slot) for decision in decisions])
    if unit == "patch":
        assert keep[:, 0].all()
        keep = keep[:, 1:]
    assert keep.float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / keep.numel()))


def test_evaluation_is_deterministic_and_training_is_not(tiny_vit):
    model = gated(tiny_vit(), GATE_SETS["all"])
    pixel_values = images(8)
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)
        model.train()
        assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    with pytest.raises(ValueError, match="gating must be one of .*'threshold'.*got 'greedy'"):
        model(pixel_values, gating="greedy")


def test_a_sublayer_gate_is_a_block_gate_of_that_granularity(tiny_vit):
    vit, pixel_values = tiny_vit(), images(4)
    model = gated(vit, [{"gate": "sublayer", "value_width": 8}])
    other = gated(vit, [{"gate": "block", "granularity": "sublayer", "value_width": 8}])
    other.load_state_dict(model.state_dict())
    for gating in ("threshold", "act"):
        torch.manual_seed(1)
        ours = model(pixel_values, gating=gating)
        torch.manual_seed(1)
        theirs = other(pixel_values, gating=gating)
        assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.cost, theirs.cost)
    assert (ours.cost < 1).any()
