"""No reordered copy outlives a change of its weight, whoever changes it and in whatever mode."""

import copy

import pytest
import torch
from models import GATE_SETS, gated, images, run
from trainers import build_trainer

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.prepack import PrepackedLinear, can_prepack


pytestmark = pytest.mark.skipif(not can_prepack(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def worth_it_at_any_size(monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)


def backward(model):
    pixels = images(4, generator=torch.Generator().manual_seed(5))
    model(pixels, labels=torch.arange(4)).loss.backward()


def evaluate(model):
    with torch.no_grad():
        model(images(2, generator=torch.Generator().manual_seed(6)))


def trains_and_evaluates(model, optimizer):
    backward(model.train())
    optimizer.step()
    model.eval()


def trains_in_evaluation_mode(model, optimizer):
    model.layout = "masked"
    backward(model.eval())
    optimizer.step()


def looks_between_gradient_and_step(model, optimizer):
    backward(model.train())
    evaluate(model.eval())  # makes copies, which the step does not announce
    optimizer.step()


def looks_while_it_trains(model, optimizer):
    model.train()
    backward(model)
    evaluate(model)
    optimizer.step()
    model.eval()


@pytest.mark.parametrize(
    "loop",
    [trains_and_evaluates, trains_in_evaluation_mode, looks_between_gradient_and_step, looks_while_it_trains],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_is_on_the_weights_of_the_last_fused_step(tiny_vit, loop, dtype):
    model = gated(tiny_vit(), GATE_SETS["head"]).to(dtype).prepack()
    images_seen = images(3).to(dtype)
    before = run(model, "packed", images_seen, gating="open").logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        model.layout = None
        loop(model, optimizer)
        logits = run(model, "packed", images_seen, gating="open").logits
        plain = DynViTForImageClassification(model.config).to(dtype).eval()
        plain.load_state_dict(model.state_dict())
        expected = run(plain, "packed", images_seen, gating="open").logits
        tolerance = 1e-4 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
        assert (logits - before).abs().max() > 4 * tolerance
        before = logits


def test_the_trainer_evaluates_what_it_trained(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, gates=None, budget=1.0, learning_rate=0.02, max_steps=6)
    trainer.model.eval().prepack()
    evaluate(trainer.model)
    at_first = trainer.evaluate()["eval_loss"]
    trainer.train()
    trained = trainer.evaluate()["eval_loss"]
    assert abs(trained - at_first) > 0.05
    trainer.model.save_pretrained(tmp_path / "model")
    loaded = DynViTForImageClassification.from_pretrained(tmp_path / "model")
    again = build_trainer(tiny_vit, tmp_path, gates=None, budget=1.0)
    again.model.load_state_dict(loaded.state_dict())
    assert again.evaluate()["eval_loss"] == pytest.approx(trained, abs=1e-4)


def test_what_is_added_behind_the_version_is_seen(tiny_vit):
    """As adapters are merged: a product added to `weight.data`."""
    model = gated(tiny_vit(), GATE_SETS["head"]).prepack()
    pixels = images(3)
    run(model, "packed", pixels)
    for layer in model.vit.layers:
        for linear in (layer.attention.v_proj, layer.attention.k_proj, layer.mlp.fc1, layer.mlp.fc2):
            linear.weight.data += torch.randn(linear.out_features, 2) @ torch.randn(2, linear.in_features)
            linear.bias.data += 1
    plain = DynViTForImageClassification(model.config).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        run(model, "packed", pixels, gating="open").logits,
        run(plain, "packed", pixels, gating="open").logits,
        atol=1e-3,
        rtol=0,
    )


@pytest.mark.parametrize(
    "ends",
    [
        lambda model: model.train(),
        lambda model: model.to(torch.float64),
        lambda model: model.load_state_dict(model.state_dict()),
        backward,
    ],
)
def test_copies_go_when_weights_may_change(tiny_vit, ends):
    model = gated(tiny_vit(), GATE_SETS["sublayer"]).prepack()
    run(model, "packed", images(2), gating="open")

    def copies():
        return sum(bool(module._kept) for module in model.modules() if isinstance(module, PrepackedLinear))

    assert copies()
    model.layout = "masked"
    ends(model)
    assert not copies()


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_dropout_stays(tiny_vit, layout):
    model = gated(tiny_vit(hidden_dropout_prob=0.5), None)
    pixels, found = images(3), []
    for each in (model, copy.deepcopy(model).prepack()):
        each.vit.layers.train()
        found.append(run(each, layout, pixels, gating="open").logits)  # from the same seed
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    model.eval()
    monte_carlo = copy.deepcopy(model).prepack()
    monte_carlo.vit.layers[-1].dropout.train()
    assert (run(monte_carlo, layout, pixels).logits - run(model, layout, pixels).logits).abs().max() > 1e-2
