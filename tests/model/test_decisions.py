"""What a decision means, in either layout: who is computed, who passes by, who sees whom."""

import pytest
import torch
from models import GATE_SETS, gated, images, random_decisions, run
from torch.testing import assert_close

from hf_dynvit import LayerDecisions
from hf_dynvit.model.gate import Exploration


LAYERS = 3
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_a_dropped_token_passes_the_block_bit_identical(tiny_vit, layout):
    model = gated(tiny_vit(LAYERS), None)
    decisions = random_decisions(4, LAYERS)
    hidden = run(model, layout, images(4), decisions=decisions, output_hidden_states=True).hidden_states
    for before, after, decision in zip(hidden, hidden[1:], decisions, strict=False):
        attention, mlp = decision.sublayers.unbind(1)
        used = (decision.attention_tokens & attention[:, None]) | (decision.mlp_tokens & mlp[:, None])
        assert torch.equal(after[~used], before[~used])
        assert (after[used] != before[used]).any(-1).all()


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_kept_tokens_do_not_see_dropped_ones(tiny_vit, layout):
    model = gated(tiny_vit(LAYERS), None)
    decisions = random_decisions(1, 1) * LAYERS
    decisions = [d._replace(mlp_tokens=d.attention_tokens, sublayers=None) for d in decisions]
    dropped = ~decisions[0].attention_tokens[0, 1:]
    pixel_values = images(1)
    pixels_dropped = dropped.view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    changed = pixel_values + pixels_dropped
    streams = [
        run(model, layout, values, decisions=decisions, output_hidden_states=True).hidden_states[-1][0, 1:]
        for values in (pixel_values, changed)
    ]
    assert_close(streams[1][~dropped], streams[0][~dropped], rtol=0, atol=1e-5)
    assert (streams[1][dropped] != streams[0][dropped]).any(-1).all()


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_a_dropped_token_can_be_selected_again(tiny_vit, layout):
    model = gated(tiny_vit(2), None)
    without = torch.arange(17).ne(5).repeat(2, 1)
    decisions = [LayerDecisions(without, without), LayerDecisions()]
    hidden = run(model, layout, images(2), decisions=decisions, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[1][:, 5], hidden[0][:, 5])
    assert (hidden[2][:, 5] != hidden[1][:, 5]).any(-1).all()


@pytest.mark.parametrize("name", ["all", "all official", "patch merged", "merge"])
def test_an_image_is_treated_alike_alone_and_in_a_batch(tiny_vit, name):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    pixel_values = images(8)
    together = run(model, "packed", pixel_values)
    for index in range(8):
        alone = run(model, "packed", pixel_values[index : index + 1])
        assert_close(alone.logits[0], together.logits[index], **TOLERANCE)
        assert torch.equal(alone.cost[0], together.cost[index])
        for one, all_of_them in zip(alone.decisions, together.decisions, strict=True):
            for a, b in zip(one.keeps().values(), all_of_them.keeps().values(), strict=True):
                assert torch.equal(a[0], b[index])


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_a_forward_leaves_its_input_and_its_model_as_they_were(tiny_vit, layout):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"])
    pixel_values = images(3)
    before, weights = pixel_values.clone(), {name: t.clone() for name, t in model.state_dict().items()}
    first = run(model, layout, pixel_values)
    second = run(model, layout, pixel_values)
    assert torch.equal(pixel_values, before)
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_tokens_that_are_dropped_for_good_never_return(tiny_vit, layout):
    gates = [{"gate": "patch", "drop": True, "layers": [0]}, {"gate": "patch", "on": "mlp", "layers": [1]}]
    model = gated(tiny_vit(LAYERS), gates)
    decisions = run(model, layout, images(8)).decisions
    alive = decisions[0].attention_tokens
    assert not alive.all() and alive[:, 1:].any()
    assert torch.equal(decisions[0].mlp_tokens, alive)
    assert torch.equal(decisions[1].attention_tokens, alive)
    assert (decisions[1].mlp_tokens <= alive).all() and not torch.equal(decisions[1].mlp_tokens, alive)
    assert torch.equal(decisions[2].attention_tokens, alive) and torch.equal(decisions[2].mlp_tokens, alive)


@pytest.mark.parametrize("name", ["patch for good", "patch merged", "merge"])
def test_sampled_drops_without_gradients_may_run_packed(tiny_vit, name):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    pixel_values = images(8)
    packed = run(model, "packed", pixel_values, gating="sample", exploration=Exploration(noise=0.0))
    masked = run(model, "masked", pixel_values, gating="sample", exploration=Exploration(noise=0.0))
    assert_close(packed.logits, masked.logits, **TOLERANCE)
    assert torch.equal(packed.cost, masked.cost)


def test_only_a_gate_of_the_whole_block_can_drop_for_good(tiny_vit):
    with pytest.raises(ValueError, match='needs on="block"'):
        gated(tiny_vit(LAYERS), [{"gate": "patch", "drop": True, "on": "mlp"}])
