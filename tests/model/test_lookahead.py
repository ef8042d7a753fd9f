"""Claims about gates that decide up front: the host waits once for all of them, and nothing else changes."""

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hf_dynvit.model import encoder
from hf_dynvit.model.gate import Exploration


LAYERS = [1, 2, 4]
UPFRONT = [{"gate": "block", "upfront": True, "layers": LAYERS, "value_width": 8}]
IN_TURN = [{"gate": "block", "layers": LAYERS, "value_width": 8}]
WAITS = (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs before it can go on."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in WAITS
        return function(*args, **(kwargs or {}))


@pytest.fixture
def plans(monkeypatch):
    """The counts of each plan that was brought to the host."""
    made, to_host = [], encoder.to_host

    def counted(counts):
        made.append(to_host(counts))
        return made[-1]

    monkeypatch.setattr(encoder, "to_host", counted)
    return made


def without_plans(model, monkeypatch):
    monkeypatch.setattr(encoder, "_gates_ahead", lambda *args: {})


@pytest.mark.parametrize("gating", ["threshold", "act"])
def test_the_host_waits_once_for_all_layers(tiny_vit, plans, gating):
    for gates, waits, crossings in ((UPFRONT, 0, 1), (IN_TURN, len(LAYERS), 0)):
        model = gated(tiny_vit(5), gates)
        plans.clear()
        with Waits() as counter:
            run(model, "packed", images(8), gating=gating)
        assert (counter.count, len(plans)) == (waits, crossings)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("gating", ["threshold", "act"])
def test_a_plan_changes_nothing(tiny_vit, plans, monkeypatch, gating, batch):
    model, pixel_values = gated(tiny_vit(5), UPFRONT), images(batch)
    planned = run(model, "packed", pixel_values, gating=gating, output_hidden_states=True)
    kept = [int(planned.decisions[layer].sublayers[:, 0].sum()) for layer in LAYERS]
    assert plans == [kept] and 0 < sum(kept) < len(LAYERS) * batch
    masked = run(model, "masked", pixel_values, gating=gating)
    without_plans(model, monkeypatch)
    in_turn = run(model, "packed", pixel_values, gating=gating, output_hidden_states=True)
    assert len(plans) == 1
    for one, other in zip(planned.decisions, in_turn.decisions, strict=True):
        for name in one._fields:
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), name
    assert torch.equal(planned.logits, in_turn.logits) and torch.equal(planned.cost, in_turn.cost)
    for one, other in zip(planned.hidden_states, in_turn.hidden_states, strict=True):
        assert torch.equal(one, other)
    assert_close(masked.logits, planned.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_without_a_plan(tiny_vit, monkeypatch, checkpointing):
    model = gated(tiny_vit(5), UPFRONT).train()
    model.layout = "packed"
    if checkpointing:
        model.activation_checkpointing_enable()
    pixel_values, found = images(8), []
    for _ in range(2):
        torch.manual_seed(0)
        out = model(pixel_values, labels=torch.arange(8) % 5, gating="act")
        deciding = [decision for decision in out.decisions if decision.log_prob is not None]
        (out.loss + sum(d.log_prob.sum() + d.value.sum() for d in deciding)).backward()
        assert len(deciding) == len(LAYERS)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        without_plans(model, monkeypatch)
    assert found[0].keys() == found[1].keys() and any("score" in name for name in found[0])
    for name in found[0]:
        assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6, msg=name)


def test_a_plan_knows_the_mask_and_the_curriculum(tiny_vit, plans):
    model = gated(tiny_vit(5), UPFRONT)
    pixel_values = images(8)
    run(model, "packed", pixel_values, gating="act", exploration=Exploration(from_layer=2))
    model.config.layer_mask = [[True, True], [False, False], [True, True], [True, True], [True, False]]
    out = run(model, "packed", pixel_values)
    assert [len(plan) for plan in plans] == [2, 1]  # layers 2 and 4, and 2 alone
    assert_close(out.logits, run(model, "masked", pixel_values).logits, rtol=0, atol=1e-4)
    again = run(model, "packed", pixel_values, decisions=out.decisions)  # entered by a layer that the mask forbids
    assert len(plans) == 2 and torch.equal(again.logits, out.logits)


def test_what_is_not_a_whole_block_is_decided_in_turn(tiny_vit, plans):
    for gates in (
        [{"gate": "block", "upfront": True, "granularity": "sublayer"}],
        [{"gate": "block", "upfront": True}, {"gate": "head"}],
    ):
        model, pixel_values = gated(tiny_vit(3), gates), images(6)
        packed, masked = (run(model, layout, pixel_values) for layout in ("packed", "masked"))
        assert not plans
        assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
