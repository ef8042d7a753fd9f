"""What transformers users expect of a ViT works with gates too, or says why it has no meaning."""

import pytest
import torch
from models import GATE_SETS, gated, images, random_decisions
from torch.testing import assert_close
from transformers import ViTForImageClassification

from hf_dynvit import DynViTForImageClassification, DynViTModel


LAYERS = 3


def clone(model):
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.train(model.training)


def test_hidden_states_are_those_of_every_layer_in_both_layouts(tiny_vit):
    vit = tiny_vit(LAYERS)
    model, plain = gated(vit, GATE_SETS["all"]), gated(vit, None)
    pixel_values = images(3)
    states = {}
    with torch.no_grad():
        for model.layout in ("masked", "packed"):
            out = model(pixel_values, output_hidden_states=True)
            states[model.layout] = out.hidden_states
            assert_close(model.classifier(model.vit.layernorm(out.hidden_states[-1][:, 0])), out.logits)
        native = vit(pixel_values, output_hidden_states=True).hidden_states
        ungated = plain(pixel_values, output_hidden_states=True).hidden_states
    assert len(states["masked"]) == len(states["packed"]) == len(native) == LAYERS + 1
    for masked, packed in zip(states["masked"], states["packed"], strict=True):
        assert_close(packed, masked, rtol=0, atol=1e-4)
    for ours, theirs in zip(ungated[:-1], native[:-1], strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_hidden_states_can_be_asked_for_by_index(tiny_vit):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"])
    pixel_values = images(2)
    with torch.no_grad():
        full = model(pixel_values, output_hidden_states=True).hidden_states
        some = model(pixel_values, output_hidden_states=[1, -1]).hidden_states
        assert model(pixel_values).hidden_states is None
    assert [state is None for state in some] == [True, False, True, False]
    assert torch.equal(some[1], full[1]) and torch.equal(some[3], full[3])


def test_attentions_need_eager_and_give_dropped_keys_no_weight(tiny_vit):
    vit = tiny_vit(LAYERS)
    vit.set_attn_implementation("eager")
    model = gated(vit, [{"gate": "patch"}])
    with torch.no_grad():
        out = model(images(3), output_attentions=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(3, 4, 17, 17)] * LAYERS
    for weights, decision in zip(out.attentions, out.decisions, strict=True):
        assert weights.transpose(1, 3)[~decision.attention_tokens].abs().max() == 0  # by key
        assert_close(weights.sum(-1), torch.ones(3, 4, 17))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="output_attentions needs eager attention, not 'sdpa'"):
        model(images(3), output_attentions=True)


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_other_image_sizes_with_interpolated_positions(tiny_vit, layout):
    vit = tiny_vit(LAYERS)
    plain, model = gated(vit, None), gated(vit, GATE_SETS["all"])
    plain.layout = model.layout = layout
    pixel_values = images(2, size=48)
    with torch.no_grad():
        expected = vit(pixel_values, interpolate_pos_encoding=True).logits
        assert_close(plain(pixel_values, interpolate_pos_encoding=True).logits, expected, rtol=0, atol=1e-5)
        out = model(pixel_values, interpolate_pos_encoding=True)
    assert out.decisions[0].mlp_tokens.shape == (2, 37)
    assert plain(pixel_values, interpolate_pos_encoding=True).cost.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("gates", ["all", "all official"])
def test_activation_checkpointing_gives_the_same_gradients_with_sampling_gates(tiny_vit, gates):
    model = gated(
        tiny_vit(LAYERS, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), GATE_SETS[gates]
    ).train()
    recomputed = clone(model)
    recomputed.activation_checkpointing_enable()
    assert recomputed.is_activation_checkpointing
    pixel_values, labels = images(4), torch.arange(4)
    gradients, outs = [], []
    for one in (model, recomputed):
        torch.manual_seed(3)
        out = one(pixel_values, labels=labels)
        (out.loss + out.cost.mean()).backward()
        outs.append(out)
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    assert torch.equal(outs[0].cost, outs[1].cost)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name
    assert any(gradient.any() for name, gradient in gradients[0].items() if name.startswith("gates."))


def test_activation_checkpointing_works_packed_and_refuses_the_reentrant_variant(tiny_vit):
    model = gated(tiny_vit(LAYERS), None).train()
    recomputed = clone(model)
    recomputed.activation_checkpointing_enable()
    decisions, pixel_values = random_decisions(4, LAYERS), images(4)
    for one in (model, recomputed):
        one.layout = "packed"
        one(pixel_values, labels=torch.arange(4), decisions=decisions).loss.backward()
    for (name, p), other in zip(model.named_parameters(), recomputed.parameters(), strict=True):
        assert_close(other.grad, p.grad, msg=lambda text, name=name: f"{name}: {text}")
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model.activation_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_models_take_float_images(tiny_vit, dtype, layout):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"]).to(dtype)
    model.layout = layout
    with torch.no_grad():
        out = model(images(3), labels=torch.arange(3))
    assert out.logits.dtype == dtype and out.logits.isfinite().all() and out.loss.isfinite()
    assert out.cost.dtype == torch.float32


@pytest.mark.parametrize("model_class", [DynViTForImageClassification, DynViTModel])
def test_tuples_hold_what_the_output_object_holds(tiny_vit, model_class):
    model = model_class(gated(tiny_vit(), GATE_SETS["all"]).config).eval()
    pixel_values = images(2)
    with torch.no_grad():
        out = model(pixel_values, output_hidden_states=True)
        as_tuple = model(pixel_values, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(out.to_tuple())
    assert torch.equal(as_tuple[0], out[0]) and torch.equal(as_tuple[1], out.cost)


def test_features_are_those_of_the_native_body(tiny_vit):
    vit = tiny_vit()
    features = DynViTModel(gated(vit, None).config).eval()
    features.vit.load_state_dict(vit.vit.state_dict())
    pixel_values = images(2)
    with torch.no_grad():
        expected = vit.vit(pixel_values).last_hidden_state
        assert_close(features(pixel_values).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("problem, labels", [(None, torch.tensor([0, 4])), ("multi_label", torch.ones(2, 5))])
def test_losses_are_those_of_the_native_classifier(tiny_vit, problem, labels):
    vit = tiny_vit(problem_type=problem and f"{problem}_classification")
    model = gated(vit, None)
    assert isinstance(vit, ViTForImageClassification)
    pixel_values = images(2)
    assert_close(model(pixel_values, labels=labels).loss, vit(pixel_values, labels=labels).loss)


@pytest.mark.parametrize("model_class", [DynViTForImageClassification, DynViTModel])
def test_an_option_that_no_forward_has_is_refused_by_name(tiny_vit, model_class):
    model = model_class(gated(tiny_vit(), None).config).eval()
    model(images(1), gating="threshold", patches=torch.arange(3), interpolate_pos_encoding=False)
    with pytest.raises(TypeError, match="'gatings'"):
        model(images(1), gatings="threshold")


@pytest.mark.parametrize("beyond", [3, -4, 7])
def test_a_hidden_state_that_there_is_not_is_refused(tiny_vit, beyond):
    model = gated(tiny_vit(), [{"gate": "patch"}])
    with pytest.raises(IndexError, match=rf"hidden states are 0\.\.2, or counted from the last one, got \[{beyond}\]"):
        model(images(2), output_hidden_states=[0, beyond])
    assert model(images(2), output_hidden_states=[-1]).hidden_states[2] is not None
