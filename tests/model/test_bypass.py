"""What is skipped adds its bypass: the same in both layouts, counted, learned from, saved, and nothing while it is fresh."""

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hf_dynvit import DynViTForImageClassification, LayerDecisions
from hf_dynvit.model import encoder
from hf_dynvit.model.cost import dense_macs, layer_costs


LAYERS = 3
LOW_RANK = {"bypass": "low_rank", "rank": 4}
SETS = {
    "block, linear": [{"gate": "block", "bypass": "linear"}],
    "block, mean": [{"gate": "block", "bypass": "mean"}],
    "block upfront, diagonal": [{"gate": "block", "bypass": "diagonal", "upfront": True}],
    "sublayer, linear": [{"gate": "sublayer", "bypass": "linear"}],
    "sublayer, mean": [{"gate": "sublayer", "bypass": "mean"}],
    "block by sub-layer, low rank": [{"gate": "block", "granularity": "sublayer", **LOW_RANK}],
    "block, head and patch": [
        {"gate": "block", "bypass": "linear"},
        {"gate": "head"},
        {"gate": "patch", "drop": True, "merge": True},
    ],
    "sublayer and patch": [{"gate": "sublayer", **LOW_RANK}, {"gate": "patch", "drop": True}],
    "sublayer and tokens of each": [
        {"gate": "patch", "on": "attention"},
        {"gate": "patch", "on": "mlp"},
        {"gate": "sublayer", "bypass": "diagonal"},
    ],
    "block and tokens of the MLP": [{"gate": "patch", "on": "mlp"}, {"gate": "block", "bypass": "linear"}],
    "random block": [{"gate": "random", "unit": "block", "bypass": "linear"}],
    "random sublayer": [{"gate": "random", "unit": "sublayer", "bypass": "linear"}],
}
MASKS = (
    [[True, True], [False, False], [True, True]],
    [[False, True], [True, False], [True, True]],
    [[False, False], [True, True], [False, True]],
)


def without_bypasses(model):
    """The same model with bypasses that add nothing."""
    for gates in model.gates:
        for bypass in gates["sublayers"].bypass:
            for parameter in bypass.parameters():
                torch.nn.init.zeros_(parameter)
            assert bypass.adds_nothing()
    return model


def assert_layouts_agree(model, pixel_values, **options):
    masked, packed = (run(model, layout, pixel_values, **options) for layout in ("masked", "packed"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)
    return masked


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", SETS)
def test_layouts_agree_and_replay_what_they_decided(tiny_vit, name, batch):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS[name]), images(batch)
    out = assert_layouts_agree(model, pixel_values)
    again = assert_layouts_agree(model, pixel_values, decisions=out.decisions)
    assert_close(again.logits, out.logits, rtol=0, atol=1e-5)
    plain = run(without_bypasses(model), "masked", pixel_values, decisions=out.decisions)
    assert not torch.allclose(plain.logits, out.logits, atol=1e-3)  # the agreement is about something


@pytest.mark.parametrize("gating", ["threshold", "open"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SETS)
def test_layouts_agree_under_a_mask(tiny_vit, name, mask, gating):
    model = gated(tiny_vit(LAYERS), SETS[name])
    model.config.layer_mask = mask
    assert_layouts_agree(model, images(3), gating=gating)


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("by_mask", [False, True])
def test_it_is_added_to_the_tokens_that_enter_what_is_skipped(tiny_vit, layout, by_mask):
    vit, pixel_values = tiny_vit(LAYERS), images(2)
    for gates in ([{"gate": "block", "bypass": "linear"}], [{"gate": "sublayer", "bypass": "diagonal"}]):
        model = gated(vit, gates)
        skipped = LayerDecisions(sublayers=torch.zeros(2, 2, dtype=torch.bool))
        decisions = [LayerDecisions(), skipped, LayerDecisions()]
        if by_mask:
            model.config.layer_mask, decisions = MASKS[0], None
        found = run(model, layout, pixel_values, decisions=decisions, gating="open")
        with torch.no_grad():
            x = vit.vit.layers[0](vit.vit.embeddings(pixel_values))
            for bypass in model.gates[1]["sublayers"].bypass:
                x = x + bypass(x)
            wanted = vit.classifier(vit.vit.layernorm(vit.vit.layers[2](x))[:, 0])
        assert_close(found.logits, wanted, rtol=0, atol=1e-4)


def test_a_bypass_of_the_block_counts_where_neither_half_runs(tiny_vit):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS["block, linear"]), images(2)
    halves = [LayerDecisions(sublayers=torch.tensor([[True, False], [False, True]]))] * LAYERS
    one = assert_layouts_agree(model, pixel_values, decisions=halves)
    assert torch.equal(one.logits, run(without_bypasses(model), "masked", pixel_values, decisions=halves).logits)


@pytest.mark.parametrize(
    "name", [name for name in SETS if "head" not in name]
)  # merging that is replayed is not searched
def test_its_products_are_counted(tiny_vit, counted_attention, name):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS[name]), images(1)
    decisions = run(model, "packed", pixel_values).decisions
    model.layout = "packed"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(pixel_values, decisions=decisions)
    assert counter.get_total_flops() / 2 == round(float(out.cost) * dense_macs(model.config, 17, 5))


def test_a_mask_pays_for_the_bypass_and_a_switch_learns_what_it_saves(tiny_vit):
    model = gated(tiny_vit(LAYERS), SETS["sublayer, linear"])
    macs = model.gates[0]["sublayers"].bypass[0].macs()
    assert macs == 32 * 32
    model.config.layer_mask = MASKS[0]
    masked = run(model, "packed", images(1), gating="open").cost
    plain = gated(tiny_vit(LAYERS), None)
    plain.config.layer_mask = MASKS[0]
    total = dense_macs(model.config, 17, 5)
    assert_close(masked - run(plain, "packed", images(1)).cost, torch.tensor([2 * 17 * macs / total]))
    slopes = []
    for gates in (None, model.gates):
        sublayers = torch.ones(1, 2, requires_grad=True)
        costs = layer_costs(model.config, [LayerDecisions(sublayers=sublayers)] * LAYERS, 1, 17, "cpu", gates)
        slopes.append(torch.autograd.grad(costs.sum(), sublayers)[0])
    assert_close(slopes[0] - slopes[1], torch.full((1, 2), 17.0 * macs * LAYERS))


@pytest.mark.parametrize("on", [0.0, 1.0])
@pytest.mark.parametrize("name", ["block, linear", "sublayer, linear"])
def test_a_switch_learns_what_its_bypass_would_add_as_a_loss(tiny_vit, name, on):
    model, pixel_values = gated(tiny_vit(1), SETS[name]), images(2)
    model.layout, direction = "masked", torch.randn(2, 17, 32)

    def slope():
        use = torch.full((2, 1), on, requires_grad=True)
        alike = torch.cat([use, use if "block" in name else torch.ones(2, 1)], 1)  # the MLP runs, or is not decided
        out = model(pixel_values, decisions=[LayerDecisions(sublayers=alike)], output_hidden_states=True)
        return torch.autograd.grad((out.hidden_states[-1] * direction).sum(), use)[0].squeeze(1)

    with torch.no_grad():  # without an MLP the layer is linear in the switch of its attention
        model.vit.layers[0].mlp.fc2.weight.zero_()
        added = model.gates[0]["sublayers"].bypass[0](model.vit.embeddings(pixel_values))
    with_bypass = slope()
    without_bypasses(model)
    assert_close(slope() - with_bypass, (added * direction).sum((1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SETS if "random" not in name])
def test_layouts_have_the_same_gradients_under_hard_decisions(tiny_vit, name):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS[name]).train(), images(4)
    decisions = run(model.eval(), "masked", pixel_values).decisions
    found = {}
    for model.layout in ("masked", "packed"):
        model.zero_grad()
        model.train()(pixel_values, labels=torch.arange(4), decisions=decisions).loss.backward()
        found[model.layout] = {
            key: torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in model.named_parameters()
        }
    assert any(gradient.any() for key, gradient in found["masked"].items() if "bypass" in key)
    for key, gradient in found["masked"].items():
        assert_close(found["packed"][key], gradient, rtol=0, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", SETS)
def test_fresh_it_changes_nothing_and_learns_from_what_is_skipped(tiny_vit, name):
    vit, pixel_values = tiny_vit(LAYERS), images(2)
    model = DynViTForImageClassification.from_vit(vit, gates=SETS[name])
    assert all(bypass.adds_nothing() for gates in model.gates for bypass in gates["sublayers"].bypass)
    decisions = [LayerDecisions(sublayers=torch.zeros(2, 2, dtype=torch.bool)), *[LayerDecisions()] * (LAYERS - 1)]
    plain = DynViTForImageClassification.from_vit(vit)
    wanted = run(plain, "masked", pixel_values, decisions=decisions).logits
    assert torch.equal(run(model, "masked", pixel_values, decisions=decisions).logits, wanted)
    model(pixel_values, labels=torch.arange(2), decisions=decisions).loss.backward()
    first, *others = (gates["sublayers"].bypass for gates in model.gates)
    assert all(any(p.grad is not None and p.grad.any() for p in bypass.parameters()) for bypass in first)
    assert not any(p.grad is not None and p.grad.any() for bypasses in others for p in bypasses.parameters())


@pytest.mark.parametrize("name", SETS)
def test_it_is_saved_and_loaded_with_the_model(tiny_vit, tmp_path, name):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS[name]), images(2)
    model.save_pretrained(tmp_path)
    loaded = DynViTForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded, "packed", pixel_values).logits, run(model, "packed", pixel_values).logits)


def test_a_plan_of_all_layers_knows_who_skips(tiny_vit, monkeypatch):
    model, pixel_values = gated(tiny_vit(LAYERS), SETS["block upfront, diagonal"]), images(6)
    planned = run(model, "packed", pixel_values)
    monkeypatch.setattr(encoder, "_gates_ahead", lambda *args: {})
    assert torch.equal(run(model, "packed", pixel_values).logits, planned.logits)
    assert (planned.cost < 1).any()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"gate": "block", "bypass": "full"}, r"bypass of a block gate must be one of .*'linear'.*got 'full'"),
        ({"gate": "sublayer", "bypass": True}, "bypass of a block gate must be one of .*got True"),
        ({"gate": "block", **LOW_RANK, "rank": 33}, r"rank of a block gate must be an integer in 1..32, got 33"),
        ({"gate": "block", **LOW_RANK, "rank": 0}, r"rank of a block gate must be an integer in 1..32, got 0"),
        ({"gate": "random", "bypass": "mean"}, "random gate of 'patch' skips no sub-layer: bypass must be 'none'"),
        ({"gate": "head", "bypass": "mean"}, "does not take .*bypass"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(tiny_vit, gate, message):
    with pytest.raises(ValueError, match=message):
        DynViTForImageClassification.from_vit(tiny_vit(), gates=[gate])
