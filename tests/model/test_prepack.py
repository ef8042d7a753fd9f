"""Prepacked weights: the same logits from reordered products, never from weights that are gone."""

import copy
import io
import tempfile

import pytest
import torch
from models import EXTREMES, GATE_SETS, extreme_decisions, gated, images, run

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.prepack import PrepackedLinear, can_prepack, is_prepacked, prepack


pytestmark = pytest.mark.skipif(not can_prepack(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def worth_it_at_any_size(monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)


@pytest.fixture
def vit(tiny_vit):
    return tiny_vit()


@pytest.mark.parametrize("gates", GATE_SETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_plain_weights(vit, gates, batch):
    model = gated(vit, GATE_SETS[gates])
    pixels = images(batch)
    expected = run(model, "packed", pixels)
    for layout in ("packed", "masked"):
        out = run(copy.deepcopy(model).prepack(), layout, pixels)
        torch.testing.assert_close(out.logits, expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.cost, expected.cost)


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_decisions_agree(vit, name):
    model = gated(vit, GATE_SETS["all"])
    pixels, decisions = images(3), extreme_decisions(name, 3, len(model.vit.layers))
    expected = run(model, "masked", pixels, decisions=decisions).logits
    logits = run(model.prepack(), "packed", pixels, decisions=decisions).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(vit, dtype):
    model = gated(vit, GATE_SETS["all"]).to(dtype)
    pixels = images(3).to(dtype)
    expected = run(model, "packed", pixels)
    out = run(model.prepack(), "packed", pixels, decisions=expected.decisions)
    torch.testing.assert_close(out.logits, expected.logits, atol=0.1, rtol=0)


def test_the_products_are_really_used(vit):
    model = gated(vit, GATE_SETS["sublayer"])
    assert not is_prepacked(model)
    assert is_prepacked(model.prepack())
    run(model, "packed", images(2), gating="open")
    linears = [module for module in model.modules() if isinstance(module, PrepackedLinear)]
    assert len(linears) == 6 * len(model.vit.layers)
    joint = {module._kept is not None and 3 in module._kept for module in linears}
    assert joint == {True, False}  # queries, keys and values in one
    assert not any(isinstance(module, PrepackedLinear) for module in vit.modules())


def change_in_place(model):
    with torch.no_grad():
        model.vit.layers[0].mlp.fc2.weight.mul_(-1)
        model.vit.layers[0].attention.v_proj.bias.add_(1)


def exchange(model):
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def step(model):
    model.train()
    model.layout = "masked"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(images(2, generator=torch.Generator().manual_seed(3)), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("change", [change_in_place, exchange, step, lambda model: model.double().float()])
def test_changed_weights_are_seen(vit, change):
    plain = gated(vit, GATE_SETS["head official"])
    model = copy.deepcopy(plain).prepack()
    pixels = images(2)
    before = run(model, "packed", pixels).logits
    torch.manual_seed(0)
    change(model)
    torch.manual_seed(0)
    change(plain)
    logits = run(model, "packed", pixels).logits
    torch.testing.assert_close(logits, run(plain, "packed", pixels).logits, atol=1e-4, rtol=0)
    assert change.__name__ == "<lambda>" or not torch.allclose(logits, before)


def test_training_is_as_before(vit):
    model = gated(vit, GATE_SETS["all"])
    twin = copy.deepcopy(model).prepack()
    pixels, labels = images(2), torch.tensor([0, 1])
    grads = []
    for each in (model, twin):
        torch.manual_seed(0)
        each.train()(pixels, labels=labels).loss.backward()
        grads.append([p.grad for p in each.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_autocast_and_other_dtypes_take_the_plain_product(vit):
    model = gated(vit, GATE_SETS["sublayer"])
    pixels = images(2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(model, "packed", pixels).logits
        torch.testing.assert_close(run(model.prepack(), "packed", pixels).logits, expected)


def test_copies_and_files_hold_parameters_alone(vit):
    model = gated(vit, GATE_SETS["sublayer"])
    names = list(model.state_dict())
    pixels = images(2)
    logits = run(model.prepack(), "packed", pixels).logits
    assert list(model.state_dict()) == names
    assert not any(getattr(module, "_kept", None) for module in copy.deepcopy(model).modules())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = DynViTForImageClassification.from_pretrained(folder)
    assert not is_prepacked(loaded)
    torch.testing.assert_close(run(loaded, "packed", pixels).logits, logits, atol=1e-4, rtol=0)


def test_small_products_stay_plain(monkeypatch):
    layer = torch.nn.Linear(8, 4).eval()
    prepack(layer)
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 3 * 8 * 4)
    with torch.no_grad():
        assert layer.serves(torch.zeros(3, 8))
        assert not layer.serves(torch.zeros(2, 8))


def test_refusals(vit, monkeypatch):
    model = gated(vit, GATE_SETS["sublayer"])
    with pytest.raises(ValueError, match="on CPU, this one is on .'meta'"):
        copy.deepcopy(model).to("meta").prepack()
    monkeypatch.setattr("hf_dynvit.model.prepack.PRODUCT", None)
    with pytest.raises(ValueError, match="oneDNN"):
        prepack(model)
