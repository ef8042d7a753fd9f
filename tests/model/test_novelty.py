"""A token's novelty says how little it shares with earlier ones, whatever has left, and orders a patch gate from the start."""

import pytest
import torch
from models import images, run

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.novelty import novelty, novelty_macs


NOVEL = [{"gate": "patch", "drop": True, "merge": True, "novelty": 16.0}]


def test_a_copy_is_not_new_and_its_original_is():
    tokens = torch.eye(6).repeat(2, 1, 1)  # all at right angles
    tokens[:, 4] = 3 * tokens[:, 2]
    assert torch.allclose(novelty(tokens), torch.tensor([2.0, 2.0, 1.0, 1.0, 0.0, 1.0]).expand(2, -1), atol=1e-6)


def test_cls_is_compared_with_none():
    tokens = torch.ones(1, 3, 4)
    assert novelty(tokens).tolist() == [[2.0, 2.0, 0.0]]


def test_what_has_left_does_not_count():
    torch.manual_seed(0)
    tokens, alive = torch.randn(3, 9, 8), torch.rand(3, 9) < 0.6
    alive[:, 0] = True
    among_all = novelty(tokens, alive)
    for image, kept, found in zip(tokens, alive, among_all, strict=True):
        alone = novelty(image[kept].unsqueeze(0))[0]
        assert torch.allclose(found[kept], alone, atol=1e-6)


def test_it_is_not_computed_in_16_bit_on_cpu_and_has_no_gradient():
    tokens = torch.randn(1, 5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = novelty(tokens)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, novelty(tokens))


def test_fresh_gates_are_open_and_their_order_is_that_of_novelty(tiny_vit):
    vit = tiny_vit(2)
    model = DynViTForImageClassification.from_vit(vit, NOVEL)
    pixel_values = images(2)
    with torch.no_grad():
        assert torch.allclose(model(pixel_values).logits, vit.eval()(pixel_values).logits, atol=1e-5)
        gate, tokens = model.gates[0]["attention_tokens"], torch.randn(2, 17, vit.config.hidden_size)
        assert torch.equal(gate.logits(tokens).argsort(1)[:, :8], novelty(tokens).argsort(1)[:, :8])


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_model_in_16_bit_decides_about_alike(tiny_vit, layout):
    model = DynViTForImageClassification.from_vit(tiny_vit(2), NOVEL)
    torch.nn.init.constant_(model.gates[0]["attention_tokens"].score.bias, -13.0)
    pixel_values = images(4)
    exact = run(model, layout, pixel_values)
    rough = run(model.to(torch.bfloat16), layout, pixel_values.bfloat16())
    alike = [a.attention_tokens == b.attention_tokens for a, b in zip(exact.decisions, rough.decisions, strict=True)]
    assert exact.cost.mean() < 0.9 and torch.stack(alike).float().mean() > 0.9


def test_a_reloaded_gate_has_its_learned_weight(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(2), NOVEL)
    assert model.gates[1]["attention_tokens"].novelty.weight.item() == 16.0
    torch.nn.init.constant_(model.gates[1]["attention_tokens"].novelty.weight, 5.0)
    model.save_pretrained(tmp_path)
    again = DynViTForImageClassification.from_pretrained(tmp_path)
    assert again.gates[1]["attention_tokens"].novelty.weight.item() == 5.0


def test_its_cost_is_that_of_the_tokens_that_are_left(tiny_vit):
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(tiny_vit(2), NOVEL)
    gate = model.gates[0]["attention_tokens"]
    width = model.config.hidden_size
    assert gate.macs(17) == 17 * width + 17 * 17 * width
    assert gate.macs(17, 5) == 17 * width + novelty_macs(5, width) == 17 * width + 25 * width


def test_a_negative_weight_is_refused(tiny_vit):
    with pytest.raises(ValueError, match="novelty of a patch gate must be .* at least 0, got -1"):
        DynViTForImageClassification.from_vit(tiny_vit(2), [{"gate": "patch", "novelty": -1.0}])
