"""The merging gate pairs every second token with its most similar partner, whatever has left, and merges by a threshold."""

import pytest
import torch
from models import images, run
from torch.testing import assert_close
from transformers import ViTConfig

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.decisions import UNTOUCHED, TokenState
from hf_dynvit.model.gate import Exploration
from hf_dynvit.model.gates import build_gate
from hf_dynvit.model.matching import match


MERGE = [{"gate": "merge"}]


def shifted(vit, gates, shift):
    model = DynViTForImageClassification.from_vit(vit, gates=gates)
    with torch.no_grad():
        for gate in model.learned_gates():
            gate.score.bias += shift
    return model


def test_each_token_that_may_leave_finds_the_most_similar_partner():
    tokens = torch.eye(7).repeat(2, 1, 1)  # all at right angles; 0 is [CLS], 1, 3, 5 partners, 2, 4, 6 may leave
    tokens[:, 4] = 3 * tokens[:, 5]
    tokens[:, 6] = tokens[:, 3] + tokens[:, 1] / 2
    found = match(tokens)
    assert found.leaving(7).tolist() == [[False, False, True, False, True, False, True]] * 2
    assert_close(found.distance, torch.tensor([1, 0, 1 - 0.8**0.5]).expand(2, -1))
    assert found.into(7)[:, 3:].tolist() == [[3, 5, 5, 3]] * 2
    assert torch.equal(found.into(7)[:, :2], torch.tensor([[0, 1]] * 2)) and (found.into(7)[:, 2] % 2 == 1).all()


@pytest.mark.parametrize("protected", [slice(0, 1), slice(0, 2), [0, 5]])
def test_what_has_left_does_not_count(protected):
    torch.manual_seed(0)
    tokens, alive = torch.randn(6, 12, 8), torch.rand(6, 12) < 0.6
    alive[0] = torch.arange(12) < 2  # at most one patch
    alive[:, protected] = True
    among_all = match(tokens, TokenState(alive), protected)
    into, leaving = among_all.into(12), among_all.leaving(12)
    distance = among_all.spread(among_all.distance, torch.zeros(6, 12))
    for image in range(6):
        left = alive[image].nonzero().squeeze(1)
        kept = protected if isinstance(protected, slice) else [left.tolist().index(place) for place in protected]
        alone = match(tokens[image, left].unsqueeze(0), protected=kept)
        assert torch.equal(into[image, left], left[alone.into(len(left))[0]])
        assert (
            torch.equal(leaving[image, left], alone.leaving(len(left))[0]) and not leaving[image, ~alive[image]].any()
        )
        assert_close(distance[image, left], alone.spread(alone.distance, torch.zeros(1, len(left)))[0])
        assert torch.equal(into[image, ~alive[image]], (~alive[image]).nonzero().squeeze(1))


def test_a_compacted_stream_is_matched_as_the_full_one():
    torch.manual_seed(0)
    tokens, alive = torch.randn(5, 12, 8), torch.arange(12) < torch.tensor([[12], [1], [2], [3], [8]])
    one, other = match(tokens, TokenState(alive)), match(tokens, TokenState(alive, places="any"))
    assert isinstance(other.rows, slice) and not isinstance(one.rows, slice)
    assert torch.equal(one.into(12), other.into(12)) and torch.equal(one.leaving(12), other.leaving(12))


def test_fresh_gates_are_open_and_closed_ones_leave_every_second_patch(tiny_vit):
    vit = tiny_vit(2)
    pixel_values = images(3)
    with torch.no_grad():
        fresh = DynViTForImageClassification.from_vit(vit, gates=MERGE)(pixel_values)
        assert_close(fresh.logits, vit(pixel_values).logits, rtol=0, atol=1e-5)
        closed = shifted(vit, MERGE, -100.0)(pixel_values)
    assert [kept.attention_tokens.sum(1).tolist() for kept in closed.decisions] == [[9] * 3, [5] * 3]


def test_a_threshold_merges_what_is_similar_and_images_differ(tiny_vit):
    pixel_values = images(4)
    pixel_values[0, :, :, :16] = 0.5  # half of the patches of one image are alike
    out = run(shifted(tiny_vit(2), MERGE, -14.0), "packed", pixel_values)
    counts = [decision.attention_tokens.sum(1) for decision in out.decisions]
    assert (counts[1] <= counts[0]).all() and counts[1][0] < counts[1][1:].min()


def test_policies_are_asked_for_the_tokens_that_may_leave_alone(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(2), gates=MERGE)
    gate, tokens = model.learned_gates()[0], torch.randn(3, 17, 32)
    assert torch.equal(gate.decidable(tokens, UNTOUCHED), match(tokens).leaving(17))
    action = gate.act(tokens)
    assert action.keep[:, 1::2].all() and torch.isfinite(action.log_prob).all()


def test_a_bounded_policy_keeps_all_that_may_not_leave(tiny_vit):
    gate = DynViTForImageClassification.from_vit(tiny_vit(2), gates=MERGE).learned_gates()[0]
    tokens, alive = torch.randn(8, 17, 32), torch.rand(8, 17) < 0.7
    keep = gate.act(tokens, exploration=Exploration(bound=0.6), state=TokenState(alive)).keep
    may_leave = match(tokens, TokenState(alive)).leaving(17)
    assert keep[~may_leave].all() and not keep.all()


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_nothing_merges_where_no_patch_is_left(tiny_vit, layout):
    gates = [{"gate": "patch", "drop": True, "layers": [0], "init_bias": -100.0}, {"gate": "merge", "layers": [1]}]
    model = DynViTForImageClassification.from_vit(tiny_vit(2), gates=gates)
    out = run(model, layout, images(3))
    assert torch.isfinite(out.logits).all()
    assert [kept.attention_tokens.sum(1).tolist() for kept in out.decisions] == [[1] * 3] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"novelty": 4.0, "distance": 4.0},
        {"novelty": 0.0},
        {"distance": 0.0},
        {"on": "mlp"},
        {"drop": False},
        {"merge": False},
    ],
)
def test_options_that_would_make_it_another_gate_are_refused(tiny_vit, options):
    with pytest.raises(ValueError, match="merge"):
        DynViTForImageClassification.from_vit(tiny_vit(2), gates=[{"gate": "merge", **options}])


def test_the_logit_is_that_of_a_product_of_importance_and_distance(tiny_vit):
    gate = DynViTForImageClassification.from_vit(
        tiny_vit(2), gates=[{"gate": "merge", "distance": 4.0}]
    ).learned_gates()[0]
    tokens = torch.randn(2, 17, 32)
    found = match(tokens)
    by_hand = 3.0 + 4.0 * torch.log(1 + found.distance / 0.03)
    assert_close(gate.logits(tokens)[:, 2::2], by_hand)
    with torch.no_grad():
        gate.score.weight.fill_(0.5)
    assert_close(gate.logits(tokens)[:, 2::2], by_hand + 0.5 * tokens[:, 2::2].sum(-1))
    assert (gate.logits(tokens)[:, [0, 1, 3, 15]] > 1e3).all()


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_tome_merges_the_most_similar_pairs_as_many_in_every_image(tiny_vit, layout):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates=[{"gate": "tome", "merged": 3}])
    out = run(model, layout, images(3))
    assert [kept.attention_tokens.sum(1).tolist() for kept in out.decisions] == [[14] * 3, [11] * 3, [8] * 3, [5] * 3]
    tokens = torch.randn(1, 17, 32)
    found, action = match(tokens), model.gates[0]["attention_tokens"](tokens, "threshold")
    gone = set((~action.keep[0]).nonzero().flatten().tolist())
    assert gone == {2 * place + 2 for place in found.distance[0].topk(3, largest=False).indices.tolist()}
    assert torch.equal(run(model, "masked", images(3)).cost, run(model, "packed", images(3)).cost)


def test_tome_refuses_numbers_that_are_none():
    with pytest.raises(ValueError, match="merged of a tome gate must be an integer of at least 0, got 2.5"):
        build_gate("tome", ViTConfig(), {"merged": 2.5})
