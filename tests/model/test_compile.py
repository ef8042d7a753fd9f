"""The masked layout is one graph: it compiles whole, for training too, and exports."""

import warnings

import pytest
import torch
from models import GATE_SETS, gated, images
from torch.testing import assert_close

from hf_dynvit.model.prepack import can_prepack


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "gates, attention",
    [
        ("all", "sdpa"),
        ("all official", "eager"),
        ("patch merged", "sdpa"),
        ("merge", "sdpa"),
        ("token by attention, fused", "sdpa"),
        ("token by predictor", "eager"),
    ],
)
def test_the_masked_layout_compiles_whole(tiny_vit, fresh_compiler, gates, attention):
    vit = tiny_vit(2)
    vit.set_attn_implementation(attention)
    model = gated(vit, GATE_SETS[gates])
    model.layout = "masked"
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pixel_values, labels = images(3), torch.arange(3)
    with torch.no_grad():
        expected, out = model(pixel_values), compiled(pixel_values)
    assert_close(out.logits, expected.logits)
    assert torch.equal(out.cost, expected.cost)
    model.train()
    for forward in (model, compiled):
        torch.manual_seed(0)
        out = forward(pixel_values, labels=labels)
        (out.loss + out.cost.mean()).backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()


def test_a_compiler_gets_the_masked_layout_unasked(tiny_vit, fresh_compiler):
    model = gated(tiny_vit(1), GATE_SETS["all"])
    pixel_values = images(3)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-4)


class LogitsAndCost(torch.nn.Module):
    """What an exported program gives back."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        out = self.model(pixel_values)
        return out.logits, out.cost


@pytest.mark.parametrize(
    "gates", ["all", "patch merged", "merge", "token by attention, fused", "token by values, passing"]
)
def test_the_masked_layout_exports_for_any_batch(tiny_vit, gates):
    model = gated(tiny_vit(2), GATE_SETS[gates])
    model.layout = "masked"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(LogitsAndCost(model), (images(2),), dynamic_shapes=({0: batch},))
    pixel_values = images(5)
    with torch.no_grad():
        expected = model(pixel_values)
        logits, cost = program.module()(pixel_values)
    assert_close(logits, expected.logits, rtol=0, atol=1e-5)
    assert_close(cost, expected.cost)


@pytest.mark.skipif(not can_prepack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("used", [False, True])  # before, so that there are copies
def test_prepacked_models_compile_whole_and_export(tiny_vit, fresh_compiler, monkeypatch, used):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)
    model = gated(tiny_vit(1), GATE_SETS["all"]).prepack()
    pixel_values = images(3)
    with torch.no_grad():
        if used:
            model(pixel_values)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        logits = compiled(pixel_values).logits
        expected = model(pixel_values)
        assert_close(logits, expected.logits, rtol=0, atol=1e-4)
        for strict in (False, True):
            program = torch.export.export(LogitsAndCost(model), (pixel_values,), strict=strict)
            logits, cost = program.module()(pixel_values)
            assert_close(logits, expected.logits, rtol=0, atol=1e-4)
            assert_close(cost, expected.cost)
            assert "mkldnn" not in program.graph_module.code


@pytest.mark.parametrize("gate", ["block", "patch", "merge"])
def test_a_trace_decides_for_each_image_anew(tiny_vit, gate):
    torch.manual_seed(0)
    model = gated(tiny_vit(), [{"gate": gate, "pool": "mean"} if gate == "block" else {"gate": gate}]).eval()

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            output = self.model(pixel_values)
            return output.logits, output.cost

    pixels = images(8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace may not see
        traced = torch.jit.trace(Told(), pixels[:1], check_trace=False)
        expected = model(pixels)
        assert expected.cost.std() > 0
        for index in range(8):
            logits, cost = traced(pixels[index : index + 1])
            assert_close(logits[0], expected.logits[index], rtol=0, atol=1e-4)
            assert_close(cost[0], expected.cost[index], rtol=0, atol=1e-5)
