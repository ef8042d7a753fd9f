"""The closed form of the cost is what the packed layout really computes, and gates can learn from it."""

import pytest
import torch
from models import EXTREMES, GATE_SETS, LEARNED_SETS, extreme_decisions, gated, images, random_decisions
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig

from hf_dynvit import DynViTModel, LayerDecisions
from hf_dynvit.model.cost import cost, dense_macs, layer_macs


pytestmark = pytest.mark.usefixtures("counted_attention")
LAYERS = 3
DEIT_S = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
# The published figures also count five operations per value of the two LayerNorms of a layer (fvcore's convention).
NORMS_OF_A_LAYER = 2 * 5 * 197 * 384


def counted_and_claimed(model, pixel_values, layout="packed", **options):
    """MACs by torch's counter (two FLOPs each), and by `out.cost`, for the whole batch."""
    model.layout = layout
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(pixel_values, **options)
    dense = dense_macs(model.config, 17, model.num_labels)
    return counter.get_total_flops() / 2, sum(round(float(spent) * dense) for spent in out.cost)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", GATE_SETS)
def test_closed_form_is_what_runs_gates_included(tiny_vit, name, batch):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    torch.manual_seed(batch)
    counted, claimed = counted_and_claimed(model, images(batch))
    asked = sum(gate.macs(17) for layer in model.gates for gate in layer.values())
    if asked and any(gate.drop and not gate.reads_all for layer in model.gates for gate in layer.values()):
        # Later gates are asked about fewer tokens than the claim has, or compare tokens that only others in the batch
        # have left: how many, depends on the batch.
        assert claimed - batch * asked < counted <= claimed + (batch > 1) * batch * asked
    else:
        assert counted == claimed


@pytest.mark.parametrize("name", EXTREMES)
def test_closed_form_is_what_runs_at_the_extremes(tiny_vit, name):
    model = gated(tiny_vit(LAYERS), None)
    counted, claimed = counted_and_claimed(model, images(3), decisions=extreme_decisions(name, 3, LAYERS))
    assert counted == claimed


def test_closed_form_is_what_runs_for_many_random_decisions(tiny_vit):
    model = gated(tiny_vit(LAYERS), None)
    for step in range(30):
        decisions = random_decisions(4, LAYERS, keep=step / 30)
        counted, claimed = counted_and_claimed(model, images(4), decisions=decisions)
        assert counted == claimed


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_without_gates_the_cost_is_that_of_the_dense_model(tiny_vit, layout):
    vit = tiny_vit(LAYERS)
    vit.set_attn_implementation("eager")  # the counter does not see the fused kernel of CPUs
    pixel_values = images(2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vit(pixel_values)
    counted, claimed = counted_and_claimed(gated(vit, None), pixel_values, layout)
    assert counted == claimed == counter.get_total_flops() / 2 == 2 * dense_macs(vit.config, 17, 5)


def test_features_do_not_pay_for_a_classifier(tiny_vit):
    model = DynViTModel(gated(tiny_vit(LAYERS), GATE_SETS["all"]).config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        spent = model(images(1)).cost
    assert counter.get_total_flops() / 2 == round(float(spent) * dense_macs(model.config, 17, 0))


@pytest.mark.parametrize("name", GATE_SETS)
def test_both_layouts_report_the_same_cost(tiny_vit, name):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    pixel_values, costs = images(6), []
    for model.layout in ("masked", "packed"):
        torch.manual_seed(1)
        with torch.no_grad():
            costs.append(model(pixel_values).cost)
    assert torch.equal(*costs)
    assert costs[0].shape == (6,) and costs[0].dtype == torch.float32


def test_figures_of_deit_s():
    assert layer_macs(DEIT_S, 197, 197, 6) + NORMS_OF_A_LAYER == 379_147_776
    assert round((dense_macs(DEIT_S, 197, 1000) + 12 * NORMS_OF_A_LAYER) / 1e9, 2) == 4.61


def test_a_head_that_is_off_saves_its_attention():
    saved = layer_macs(DEIT_S, 197, 197, 6) - layer_macs(DEIT_S, 197, 197, 5)
    assert saved == 2 * 197 * 197 * 64


def test_straight_through_decisions_learn_the_macs_of_each_unit(tiny_vit):
    config, total = tiny_vit(1).config, dense_macs(tiny_vit(1).config, 17, 5)
    keeps = [torch.ones(2, units, requires_grad=True) for units in (17, 17, 4, 2)]
    spent = cost(config, [LayerDecisions(*keeps)], 2, 17, 5, 0, "cpu")
    assert_close(spent, torch.ones(2))
    gradients = torch.autograd.grad(spent.sum(), keeps)
    width, inner = config.hidden_size, config.intermediate_size
    of_attention = 17 * 4 * width**2 + 2 * 17**2 * width
    expected = (
        (4 * width**2 + 4 * 17 * width) * torch.ones(2, 17),
        2 * width * inner * torch.ones(2, 17),
        2 * 17**2 * width / 4 * torch.ones(2, 4),
        torch.tensor([of_attention, 17 * 2 * width * inner]).repeat(2, 1),
    )
    for gradient, macs in zip(gradients, expected, strict=True):
        assert_close(gradient, macs / total)


@pytest.mark.parametrize("name", LEARNED_SETS)
def test_the_cost_reaches_every_gate_in_training(tiny_vit, name):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name]).train()
    model(images(8)).cost.mean().backward()
    for key, parameter in model.gates.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
