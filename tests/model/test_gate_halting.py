"""A token halts when its scores over the layers add up to the paper's sum, in both layouts, and never comes back."""

import pytest
import torch
from models import GATE_SETS, gated, images, run

from hf_dynvit import DynViTForImageClassification, calibrate
from hf_dynvit.model.gate_halting import FULL
from hf_dynvit.training.presets import gate_facts


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("score, halts", [(0.0, 1), (-5.0, 0), (1.0, 3), (2.0, 8)])
def test_tokens_halt_where_the_sum_is_full(tiny_vit, layout, score, halts):
    model = DynViTForImageClassification.from_vit(tiny_vit(6), gates=[{"gate": "halting", "init_bias": score}])
    for gate in model.learned_gates():
        torch.nn.init.zeros_(gate.score.weight)
    decisions = run(model, layout, images(2)).decisions
    first = next((layer for layer, d in enumerate(decisions) if d.attention_tokens.sum() == 2), 8)
    assert first == halts  # sigmoid(-score) times layers reaches 0.99: 0.5, 0.993, 0.27, 0.12
    assert all(d.attention_tokens.all() for d in decisions[:first])


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_the_sum_is_that_of_all_layers_before(tiny_vit, layout):
    model, pixels = gated(tiny_vit(4), GATE_SETS["halting"]), images(3)
    hidden = run(model, layout, pixels, output_hidden_states=True)
    total, alive = torch.zeros(3, 17), torch.ones(3, 17, dtype=torch.bool)
    for layer, gates in enumerate(model.gates):
        with torch.no_grad():
            normed = model.vit.layers[layer].layernorm_before(hidden.hidden_states[layer])
            total = total + torch.sigmoid(-gates["attention_tokens"].score(normed).squeeze(-1))
        alive = alive & (total < FULL)
        alive[:, 0] = True
        assert torch.equal(hidden.decisions[layer].attention_tokens, alive)
    assert 3 < alive.sum() < 3 * 17
    compacted = run(model, layout, pixels)
    for one, other in zip(compacted.decisions, hidden.decisions, strict=True):
        assert torch.equal(one.attention_tokens, other.attention_tokens)


def test_fresh_no_token_of_a_wide_model_halts_and_it_counts_as_not_learned(tiny_vit):
    vit = tiny_vit(12, hidden_size=1024, num_attention_heads=4, intermediate_size=64)
    model, other = (DynViTForImageClassification.from_vit(vit, gates="avit").eval() for _ in range(2))
    assert all(d.attention_tokens is None or d.attention_tokens.all() for d in model(images(16)).decisions)
    assert gate_facts(model)["learned"] == {"halting": 0.0}
    first, second = (one.learned_gates()[3].score for one in (model, other))
    assert torch.equal(first.weight, second.weight) and first.weight.std() > 0
    with torch.no_grad():
        second.weight[0, 0] += 1.0
    assert gate_facts(other)["learned"] == {"halting": 1.0}


def test_fresh_no_token_halts_and_at_a_budget_not_all_before_one_layer(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(6), gates="avit", budget=0.6).eval()
    pixels = images(8)
    assert all(d.attention_tokens is None or d.attention_tokens.all() for d in model(pixels).decisions)
    calibrate(model, [pixels], 0.6)
    left = [d.attention_tokens[:, 1:].float().mean().item() for d in model(pixels).decisions[1:]]
    assert sum(0.05 < share < 0.95 for share in left) >= 2


def test_it_is_brought_to_a_budget(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(6), gates="avit")
    for gate in model.learned_gates():
        torch.nn.init.normal_(gate.score.weight, std=0.3)
    _, cost = calibrate(model, [images(16)], 0.6)
    assert abs(cost - 0.6) < 0.05
