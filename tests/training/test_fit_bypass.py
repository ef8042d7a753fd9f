"""Bypasses are fitted to what their branches add, in closed form, and training treats them as a part of the body."""

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTForImageClassification, fit_bypass
from hf_dynvit.model.bypass import BYPASSES, bypass_of
from hf_dynvit.training import preparation
from hf_dynvit.training.bypass import _Stream
from hf_dynvit.training.calibration import calibration_images
from hf_dynvit.training.parameter_groups import learning


LAYERS = 3
KINDS = BYPASSES[1:]


def with_bypass(vit, kind, gate="block", **options):
    return DynViTForImageClassification.from_vit(vit, gates=[{"gate": gate, "bypass": kind, "rank": 8, **options}])


def stream(model, pixel_values, **options):
    return run(model, "masked", pixel_values, output_hidden_states=True, **options).hidden_states


def explained(bypass, x, y):
    with torch.no_grad():
        left = y - bypass(x)
    return 1 - (left.var((0, 1), correction=0).sum() / y.var((0, 1), correction=0).sum()).item()


@pytest.mark.parametrize("as_batches", [False, True])
def test_a_linear_bypass_is_the_least_squares_map_of_what_the_block_adds(tiny_vit, as_batches):
    vit, pixel_values = tiny_vit(LAYERS), images(40)
    model = with_bypass(vit, "linear")
    given = [{"pixel_values": part} for part in pixel_values.split(24)] if as_batches else pixel_values
    shares = fit_bypass(model, given, ridge=1e-9)
    states = stream(DynViTForImageClassification.from_vit(vit), pixel_values)
    for layer in range(LAYERS):
        x, y = states[layer].flatten(0, 1).double(), (states[layer + 1] - states[layer]).flatten(0, 1).double()
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        wanted = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
        (bypass,) = bypass_of(model.gates[layer])
        assert_close(bypass.up.weight.double(), wanted[:-1].T, rtol=0, atol=1e-3)
        assert_close(bypass.bias.double(), wanted[-1], rtol=0, atol=1e-3)
        found = explained(bypass, states[layer], states[layer + 1] - states[layer])
        assert shares[layer, "block"] == pytest.approx(found, abs=1e-4) and 0 < found < 1


def test_sub_layers_have_maps_of_their_own_and_richer_ones_explain_more(tiny_vit):
    vit, pixel_values, shares = tiny_vit(LAYERS), images(40), {}
    for kind in KINDS:
        model = with_bypass(vit, kind, "sublayer")
        shares[kind] = fit_bypass(model, pixel_values)
        with torch.no_grad():
            x = vit.vit.embeddings(pixel_values)
            parts = model.host.parts(vit.vit.layers[0])
            attention = parts.attention(parts.attention_norm(x))[0]
            mlp = parts.mlp(parts.mlp_norm(x + attention))
        for bypass, name, entering, added in zip(
            bypass_of(model.gates[0]), ("attention", "mlp"), (x, x + attention), (attention, mlp), strict=True
        ):
            assert shares[kind][0, name] == pytest.approx(explained(bypass, entering, added), abs=1e-4)
    assert set(shares["mean"]) == {(layer, name) for layer in range(LAYERS) for name in ("attention", "mlp")}
    for key in shares["mean"]:
        values = [shares[kind][key] for kind in ("mean", "diagonal", "linear")]
        assert values == sorted(values) and values[0] == pytest.approx(0, abs=1e-9)
        assert 0 < shares["low_rank"][key] <= shares["linear"][key] + 1e-9
    full = with_bypass(vit, "low_rank", "sublayer", rank=32)
    assert list(fit_bypass(full, pixel_values).values()) == pytest.approx(list(shares["linear"].values()), abs=1e-6)


def test_a_low_rank_map_is_the_best_of_its_rank(tiny_vit):
    vit, pixel_values = tiny_vit(1), images(40)
    model = with_bypass(vit, "low_rank")
    best = fit_bypass(model, pixel_values)[0, "block"]
    (bypass,) = bypass_of(model.gates[0])
    before, after = stream(DynViTForImageClassification.from_vit(vit), pixel_values)
    optimizer = torch.optim.Adam(bypass.parameters(), lr=1e-3)
    for _ in range(30):  # gradient descent from there finds nothing better
        (after - before - bypass(before)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert explained(bypass, before, after - before) < best + 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_skipped_leaves_less_of_a_hole_and_nothing_else_changes(tiny_vit, kind):
    vit, pixel_values = tiny_vit(LAYERS), images(64)
    model = with_bypass(vit, kind).train()
    before = weights(model)
    fit_bypass(model, pixel_values)
    assert model.training and model.config.layer_mask is None
    others = {name: value for name, value in weights(model).items() if "bypass" not in name}
    assert_same(others, {name: value for name, value in before.items() if "bypass" not in name})
    dense = run(model.eval(), "masked", pixel_values, gating="open").logits
    model.config.layer_mask = [[True, True], [False, False], [True, True]]
    filled = (run(model, "packed", pixel_values, gating="open").logits - dense).square().mean()
    model.load_state_dict(before)
    assert filled < (run(model, "packed", pixel_values, gating="open").logits - dense).square().mean()


@pytest.mark.parametrize("gate", ["block", "sublayer"])
def test_on_request_earlier_layers_skip_as_their_gates_and_the_mask_say(tiny_vit, gate):
    vit, pixel_values = tiny_vit(LAYERS), images(40)
    gates = [{"gate": gate, "bypass": "linear"}, {"gate": "patch", "drop": True, "merge": True, "layers": [1]}]
    model = gated(vit, gates)
    model.config.layer_mask = [[True, True], [True, True], [False, False]]
    fit_bypass(model, pixel_values, skipping=True)
    found = run(model, "masked", pixel_values, output_hidden_states=True)
    x, alive = found.hidden_states[2], found.decisions[1].attention_tokens
    assert 0 < alive.float().mean() < 1
    first, *_ = bypass_of(model.gates[2])
    size = torch.zeros(40, 17).scatter_add_(1, found.decisions[1].into, torch.ones(40, 17))
    parts = model.host.parts(vit.vit.layers[2])
    with torch.no_grad():
        added = []
        for one, there, sizes in zip(x, alive, size, strict=True):  # each image by itself, its dead tokens left out
            tokens = one[there][None]
            q, k, v = (
                linear(parts.attention_norm(tokens)).unflatten(-1, (4, -1)).transpose(1, 2)
                for linear in parts.projections
            )
            scores = q @ k.transpose(-1, -2) * parts.head_dim**-0.5 + sizes[there].log()
            branch = parts.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            added.append(branch[0] if gate == "sublayer" else (branch + parts.mlp(parts.mlp_norm(tokens + branch)))[0])
    y, x = torch.cat(added), x[alive]
    centred, target = x - x.mean(0), y - y.mean(0)
    regular = centred.T @ centred / len(x)
    regular = regular + 0.01 * regular.diagonal().mean() * torch.eye(32)
    wanted = torch.linalg.solve(regular, centred.T @ target / len(x))
    assert_close(first.up.weight, wanted.T, rtol=0, atol=1e-3)


def test_what_cannot_be_fitted_is_refused_by_name(tiny_vit, tmp_path):
    vit, model = tiny_vit(), with_bypass(tiny_vit(), "linear")
    with pytest.raises(ValueError, match=r'no bypass to fit: give a gate .* bypass="linear".*got gates None'):
        fit_bypass(DynViTForImageClassification.from_vit(vit), images(2))
    for ridge in (0, -1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="ridge must be positive and finite, got"):
            fit_bypass(model, images(2), ridge=ridge)
    with pytest.raises(ValueError, match="fitted to images, got none"):
        fit_bypass(model, [])
    with pytest.raises(ValueError, match="not finite"):
        fit_bypass(model, torch.full((2, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match="there is no bypass to fit"):
        build_trainer(tiny_vit, tmp_path, bypass_images=8)
    with pytest.raises(ValueError, match="bypass_images must be at least 0, got -1"):
        build_trainer(tiny_vit, tmp_path, bypass_images=-1)


def test_training_fits_first_and_not_again_when_it_is_resumed(tiny_vit, tmp_path, monkeypatch):
    gates = [{"gate": "block", "bypass": "linear"}]
    options = {"bypass_images": 24, "learning_rate": 1e-9, "gate_learning_rate": 1e-9, "max_steps": 2}
    trainer = build_trainer(tiny_vit, tmp_path, gates, save_strategy="steps", save_steps=1, **options)
    trainer.train()
    assert not any(bypass.adds_nothing() for layer in trainer.model.gates for bypass in bypass_of(layer))
    by_hand = with_bypass(tiny_vit(num_labels=3), "linear")
    by_hand.load_state_dict(trainer.model.state_dict())
    again = build_trainer(tiny_vit, tmp_path, gates, **options)
    monkeypatch.setattr(preparation, "fit_bypass", None)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    chosen = calibration_images(again.calibration_dataset, 24, 0)
    fit_bypass(by_hand, torch.stack([image["pixel_values"] for image in chosen]))
    for layers in zip(again.model.gates, by_hand.gates, strict=True):
        (one,), (other,) = map(bypass_of, layers)
        assert_close(one.up.weight, other.up.weight, rtol=0, atol=1e-5)


def test_training_teaches_it_with_the_body(tiny_vit, tmp_path):
    gates = [{"gate": "sublayer", "bypass": "low_rank", "rank": 4, "init_bias": 0.0}]
    trainer = build_trainer(tiny_vit, tmp_path, gates, freeze_gates_at=0.5, weight_decay=0.1, max_steps=4)
    named = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {named[id(p)]: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    for name, rate in rates.items():
        assert rate == (5e-2 if name.startswith("gates.") and "bypass" not in name else 1e-3), name
    before = weights(trainer.model)
    trainer.train()
    moved = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert any("bypass" in name for name in moved)
    learned = {name: p.requires_grad for name, p in trainer.model.named_parameters() if name.startswith("gates.")}
    assert all(learned.values())  # what was frozen in tuning learns again
    with learning(trainer.model, body=False):
        assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if "bypass" in name)
        assert any(p.requires_grad for p in trainer.model.parameters())


def test_a_bypass_is_fitted_to_the_size_of_images_that_the_model_runs(tiny_vit):
    vit, pixel_values = tiny_vit(LAYERS), images(40)
    gates = [{"gate": "block", "bypass": "linear"}]
    smaller = DynViTForImageClassification.from_vit(vit, gates=gates, resolution=16).eval()
    shares = fit_bypass(smaller, pixel_values)
    states = stream(DynViTForImageClassification.from_vit(vit, resolution=16), pixel_values)
    (bypass,) = bypass_of(smaller.gates[0])
    assert shares[0, "block"] == pytest.approx(explained(bypass, states[0], states[1] - states[0]), abs=1e-3)


def test_what_cannot_be_fitted_leaves_the_mode_of_the_model(tiny_vit, monkeypatch):
    model = with_bypass(tiny_vit(LAYERS), "linear").train()
    monkeypatch.setattr("hf_dynvit.training.bypass._set", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_bypass(model, images(8))
    assert model.training
    looks = [{"budget": 0.5, "resolution": 16}, {"budget": 1.0}]
    cascade = DynViTForImageClassification.from_vit(
        tiny_vit(LAYERS, num_labels=3), gates=[{"gate": "block", "bypass": "linear"}], cascade=looks
    )
    with pytest.raises(ValueError, match="fitted to one look at an image, this is a cascade"):
        fit_bypass(cascade, images(8))


@pytest.mark.parametrize("score", ["cls_attention", "cls_attention_value"])
def test_the_stream_has_what_gates_read_of_the_attention_before_them(tiny_vit, score):
    gates = [
        {"gate": "token", "score": score, "keep": 0.5, "layers": [1]},
        {"gate": "block", "bypass": "linear", "layers": [2]},
    ]
    model, pixels = gated(tiny_vit(3), gates).eval(), images(4)
    along = _Stream(model, pixels)
    with torch.no_grad():
        for layer in range(2):
            along.branches(layer, 0)
            along.advance(layer, True)
        found = run(model, "masked", pixels)
    kept = found.decisions[1].attention_tokens
    assert kept.sum() < kept.numel()
    assert torch.equal(along.state.alive > 0.5, kept > 0.5)
