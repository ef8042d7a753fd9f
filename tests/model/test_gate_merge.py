"""The merging gate pairs every second token with its most similar partner, whatever has left, and merges by a threshold."""

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.compaction import take_out
from hf_dynvit.model.cost import dense_macs
from hf_dynvit.model.decisions import UNTOUCHED, TokenState
from hf_dynvit.model.gate import Exploration
from hf_dynvit.model.gates import build_gate
from hf_dynvit.model.matching import match
from hf_dynvit.model.merging import merge
from hf_dynvit.model.prepack import can_prepack


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


@pytest.mark.parametrize("gating", ["threshold", "act", "sample"])
@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_the_partner_found_by_the_gate_is_the_one_merged_into_without_a_second_search(
    tiny_vit, layout, gating, monkeypatch
):
    monkeypatch.setattr("hf_dynvit.model.layer.nearest", None)
    model = gated(tiny_vit(2), MERGE)
    normed = []
    model.vit.layers[0].layernorm_before.register_forward_hook(lambda module, args, out: normed.append(out))
    decision = run(model, layout, images(3), gating=gating).decisions[0]
    kept = decision.attention_tokens > 0.5
    assert 0.5 < kept.float().mean() < 1
    assert torch.equal(decision.into, torch.where(kept, torch.arange(17), match(normed[0]).into(17)))
    assert kept.gather(1, decision.into).all()


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_merging_is_replayed_at_the_same_cost(tiny_vit, layout):
    model, pixel_values = gated(tiny_vit(3), MERGE), images(3)
    free = run(model, layout, pixel_values)
    again = run(model, layout, pixel_values, decisions=free.decisions)
    assert_close(again.logits, free.logits, rtol=0, atol=1e-5)
    assert torch.equal(again.cost, free.cost) and free.cost.mean() < 0.9


def test_a_sampled_token_learns_what_would_become_of_it(tiny_vit):
    x, size = torch.randn(1, 5, 3), torch.tensor([[1.0, 2.0, 1.0, 3.0, 2.0]])
    tokens = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    into = torch.tensor([[0, 1, 1, 3, 3]])
    merged, sizes, gone = merge(x, tokens, into, TokenState(size=size), packed=False)
    assert_close(merged[0, 1], (2 * x[0, 1] + x[0, 2]) / 3)
    assert_close(merged[0, [0, 3, 4]], x[0, [0, 3, 4]])
    assert sizes.tolist() == [[1.0, 3.0, 1.0, 3.0, 2.0]] and gone.tolist() == [[0, 1, 1, 3, 4]]
    (gradient,) = torch.autograd.grad(merged[0, 3].sum(), tokens)
    assert_close(gradient[0], torch.tensor([0, 0, 0, 0, 1]) * -2 / 3 * (x[0, 4] - x[0, 3]).sum())  # token 4 stayed


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("merged", [False, True])
def test_tokens_that_are_taken_out_leave_what_they_leave_where_they_stand(batch, merged):
    x, size, side = torch.randn(batch, 9, 6), 1.0 + torch.rand(batch, 9), torch.rand(batch, 9, 2)
    keep = torch.rand(batch, 9) < 0.6
    keep[:, 0] = keep[:, 3] = True
    into = torch.where(torch.arange(9) % 2 == 0, 3, torch.arange(9)) if merged else None
    into = None if into is None else into.repeat(batch, 1)
    state = TokenState(size=size, side=side)
    expected, sizes = x, size
    if merged:
        expected, sizes, gone = merge(x, keep, into, state, packed=True)
    taken, after, found = take_out(x, keep, into, state, rounded=True)
    assert len(taken.rows) % 4 == 0 and (not merged or torch.equal(found, gone))
    stream = taken.stream(taken.rows)
    for image in range(batch):
        left = keep[image].nonzero().squeeze(1)
        assert_close(stream[image, : len(left)], expected[image, left])
        assert_close(after.size[image, : len(left)], sizes[image, left])
        assert_close(after.side[image, : len(left)], side[image, left])
        assert after.places.index[image, : len(left)].tolist() == left.tolist()
        assert after.alive is None or after.alive[image].tolist() == [n < len(left) for n in range(stream.shape[1])]
    assert torch.equal(after.places.alive, keep)


@pytest.mark.skipif(not can_prepack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("batch", [1, 3])
def test_prepacked_products_of_any_number_of_rows_are_those_of_the_masked_layout(tiny_vit, batch, monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.prepack.WORTH", 0)
    model, pixel_values = gated(tiny_vit(3), MERGE), images(batch)
    masked = run(model, "masked", pixel_values)
    packed = run(model.prepack(), "packed", pixel_values)
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)


@pytest.mark.usefixtures("counted_attention")
def test_the_matching_is_counted_once_and_as_it_runs(tiny_vit):
    model = gated(tiny_vit(3), MERGE)
    for _ in range(4):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            out = model(images(1))
        assert counter.get_total_flops() / 2 == round(float(out.cost) * dense_macs(model.config, 17, 5))
        assert out.cost < 0.95


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


def test_pitomes_energy_by_hand():
    """Five patches at 0, 10, 20, 90 and 180 degrees, a margin of 0.5."""
    # The first is [CLS], which counts for nobody.
    angles = torch.tensor([45.0, 0.0, 10.0, 20.0, 90.0, 180.0]).deg2rad()
    tokens = torch.stack((angles.cos(), angles.sin()), -1).unsqueeze(0)
    gate = build_gate("pitome", ViTConfig(hidden_size=2), {"merged": 1, "margin": 0.5})
    there = torch.tensor([[False, True, True, True, True, True]])
    # At 20 degrees: 0.4397 + 0.4848 + 0.5, and exp(x) - 1 of the cosines 0.342 and -0.9397, less the margin.
    expected = [(0.43969 + 0.48481 + 0.5 - 0.14615 - 0.76299) / 5, (0.48481 + 0.5 + 0.48481 - 0.27850 - 0.77346) / 5]
    energy = gate.energy(tokens @ tokens.mT, there)[0]
    assert_close(energy[[3, 2]], torch.tensor(expected), rtol=0, atol=2e-4)
    action = gate(tokens, "threshold")
    assert action.keep[0].tolist() == [True, True, True, False, True, True]  # the most of it goes, into the next
    assert action.into[0, 3] == 2


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_pitome_merges_what_is_like_many_and_leaves_what_stands_alone(tiny_vit, layout):
    group, pair, alone = torch.eye(6)[:, :, None].expand(-1, -1, 2).flatten(1)[[0, 1, 2]]
    tokens = torch.stack([alone, group, alone, group, pair, group, pair, group]).unsqueeze(0)
    tokens = tokens + 1e-3 * torch.arange(8).view(1, 8, 1)  # no two alike
    tokens[:, 2] = torch.eye(12)[11]  # like none
    gate = build_gate("pitome", ViTConfig(hidden_size=12), {"merged": 2, "margin": 0.5})
    action = gate(tokens, "threshold")
    gone = (~action.keep[0]).nonzero().flatten().tolist()
    assert len(gone) == 2 and set(gone) < {1, 3, 5, 7} and set(action.into[0, gone].tolist()) < {1, 3, 5, 7}
    assert action.keep[0, action.into[0]].all()
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates=[{"gate": "pitome", "merged": 3}])
    kept = [decision.attention_tokens.sum(1).tolist() for decision in run(model, layout, images(3)).decisions]
    assert kept == [[14] * 3, [11] * 3, [8] * 3, [5] * 3]


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_a_merge_gate_with_a_number_merges_the_pairs_of_the_least_logit_in_every_image(tiny_vit, layout):
    torch.manual_seed(0)
    model = gated(tiny_vit(4), [{"gate": "merge", "distance": 4.0, "merged": 3}])
    out = run(model, layout, images(3))
    assert [kept.attention_tokens.sum(1).tolist() for kept in out.decisions] == [[14] * 3, [11] * 3, [8] * 3, [5] * 3]
    gate, tokens, state = model.gates[0]["attention_tokens"], torch.randn(2, 17, 32), TokenState(torch.ones(2, 17))
    state.alive[0, 4:9] = 0
    logits, action = gate.logits(tokens, state), gate(tokens, "threshold", state=state)
    for row, keep in zip(logits, action.keep, strict=True):
        assert sorted(row.topk(3, largest=False).indices.tolist()) == (~keep).nonzero().flatten().tolist()
    assert action.keep[0, 4:9].all()  # who has left leaves no more
    for shift in (-64.0, 64.0):
        assert torch.equal(gate(tokens, "sample", exploration=Exploration(shift=shift), state=state).keep, action.keep)
    drawn = gate.act(tokens, state=state)
    assert torch.equal(drawn.keep, action.keep) and drawn.log_prob is None and torch.equal(drawn.into, action.into)


def test_a_merge_gate_with_a_number_keeps_what_is_no_number_and_merges_all_where_there_are_fewer(tiny_vit):
    model = gated(tiny_vit(1), [{"gate": "merge", "distance": 4.0, "merged": 7}])
    gate, tokens = model.gates[0]["attention_tokens"], torch.randn(1, 17, 32)
    tokens[0, 4] = torch.nan
    assert gate(tokens, "threshold").keep[0, 4]
    assert gate(tokens[:, :9], "threshold").keep.sum() == 6  # [CLS], four partners, and what is no number
    for number in (-1, 2.5, True):
        with pytest.raises(ValueError, match="merged of a merge gate must be an integer in 0..1048576, got"):
            build_gate("merge", ViTConfig(), {"merged": number})


def test_tome_refuses_numbers_that_are_none():
    with pytest.raises(ValueError, match="merged of a tome gate must be an integer in 0..1048576, got 2.5"):
        build_gate("tome", ViTConfig(), {"merged": 2.5})
