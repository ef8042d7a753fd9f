"""Claims about the search over masks and the static export of what it finds."""

import json
import sys

import pytest
import torch
from models import gated, images, latency_table, run
from torch.testing import assert_close
from transformers import ViTForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.search import OBJECTIVES, MaskScores, MaskSpace, burn_in, front, pick, search
from hf_dynvit.search.masks import Reward
from hf_dynvit.search.pareto import all_scored, exhaustive, nsga2


def make_scores(vit, gates=None, granularity="block", always_keep=(0,), timed=False, **options):
    torch.manual_seed(0)
    model = gated(vit, gates)
    pixel_values = images(24)
    with torch.no_grad():
        labels = model(pixel_values, gating="open").logits.argmax(1)  # so that layers matter
    space = MaskSpace(model.config.num_hidden_layers, granularity, always_keep)
    options |= {"latencies": latency_table(model)} if timed else {}
    return MaskScores(model, space, [(pixel_values[:16], labels[:16]), (pixel_values[16:], labels[16:])], **options)


@pytest.mark.parametrize("objectives", OBJECTIVES)
@pytest.mark.parametrize("gates", [None, [{"gate": "block", "layers": [1, 3, 5]}]])
def test_nsga2_finds_the_exhaustive_front(tiny_vit, gates, objectives):
    scores = make_scores(tiny_vit(7), gates, timed=True, reward=Reward(price=0.2))
    wanted = exhaustive(scores, objectives)
    assert len(scores.cache) == 64 and scores.evaluated == 64
    found = nsga2(scores, objectives, population=16, generations=12)
    assert scores.evaluated == 64  # the cache served all of it
    values = [
        [tuple(point[name] for name, _ in OBJECTIVES[objectives]) for point in points] for points in (wanted, found)
    ]
    assert values[0] == values[1] and len(wanted) > 1


def test_no_point_of_a_front_beats_another_and_none_outside_beats_it(tiny_vit):
    scores = make_scores(tiny_vit(5))
    points = exhaustive(scores)
    for bits in scores.space.every():
        other = scores(bits)
        assert any(p["error"] <= other["error"] and p["cost"] <= other["cost"] for p in points)
    errors = [point["error"] for point in points]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == len(errors)


def test_the_same_seed_finds_the_same_and_each_mask_is_scored_once(tiny_vit):
    searches, vit = [], tiny_vit(4)
    for _ in range(2):
        scores = make_scores(vit, granularity="sublayer")
        searches.append((nsga2(scores, population=8, generations=5, seed=3), list(scores.cache)))
        assert scores.evaluated == len(scores.cache) <= 2**6
    assert searches[0] == searches[1]


def test_an_interrupted_search_ends_as_if_it_had_not_been(tiny_vit, tmp_path):
    options = {"granularity": "sublayer", "identity": {"seed": 3}}
    vit = tiny_vit(4)
    whole = nsga2(make_scores(vit, **options), population=8, generations=6, seed=3)
    file = tmp_path / "scores.json"
    broken = make_scores(vit, file=file, **options)
    nsga2(broken, population=8, generations=3, seed=3)
    resumed = make_scores(vit, file=file, **options)
    assert len(resumed.cache) == broken.evaluated > 0
    assert nsga2(resumed, population=8, generations=6, seed=3) == whole
    assert json.loads(file.read_text())["identity"] == {"seed": 3}
    with pytest.raises(ValueError, match="scores of another search"):
        make_scores(vit, file=file, granularity="sublayer", identity={"seed": 4})


@pytest.mark.parametrize(
    ("layers", "method", "all_masks"), [(7, "auto", True), (8, "auto", False), (8, "exhaustive", True)]
)
def test_small_spaces_are_searched_exhaustively_unless_a_method_is_given(tiny_vit, layers, method, all_masks):
    scores = make_scores(tiny_vit(layers))
    points = search(scores, method=method, population=3, generations=3)
    assert points == front(scores, [[bit == "1" for bit in bits] for bits in scores.cache])
    assert (len(scores.cache) == 2 ** (layers - 1)) == all_masks


def test_a_policy_acts_inside_the_mask_with_states_that_see_it(tiny_vit):
    scores = make_scores(tiny_vit(7), [{"gate": "block"}])
    model, (pixel_values, _) = scores.model, scores.batches[0]
    mask = scores.space.layer_mask((False, False, True, True, True, True))
    free = run(model, "packed", pixel_values)
    model.config.layer_mask = mask
    out = run(model, "packed", pixel_values, output_hidden_states=True)
    for layer, (gates, decision) in enumerate(zip(model.gates, out.decisions, strict=True)):
        with torch.no_grad():
            wanted = gates["sublayers"](out.hidden_states[layer], "threshold") & torch.tensor(mask[layer])
        assert torch.equal(decision.sublayers, wanted)
    assert any(
        not torch.equal(one.sublayers, other.sublayers)
        for one, other in zip(free.decisions[3:], out.decisions[3:], strict=True)
    )


def test_scoring_leaves_the_configuration_as_it_was(tiny_vit):
    scores = make_scores(tiny_vit(3))
    scores((True, False))
    assert scores.model.config.layer_mask is None
    result = scores((True, True))
    assert result["accuracy"] == 1.0 and result["cost"] == pytest.approx(1.0) and result["layers"] == 1.0
    assert result["reward"] == pytest.approx(0.0, abs=1e-5)


def test_layers_that_are_always_kept_are_in_every_mask():
    space = MaskSpace(4, "block", (0, 2))
    assert len(space) == 2 and all(m[0] == m[2] == [True, True] for m in map(space.layer_mask, space.every()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskSpace(2, "block", (0, 1)), "nothing to search"),
        (lambda: MaskSpace(2, "block", (5,)), "always_keep must be in 0..1"),
        (lambda: MaskSpace(2, "patch"), "granularity must be one of"),
        (lambda: MaskSpace(2, "block", ()).layer_mask((False, False)), "switches off everything"),
        (lambda: MaskSpace(24).every(), "at most 12 bits, this space has 23: take nsga2"),
    ],
)
def test_bad_spaces_and_masks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_searches_are_refused(tiny_vit, monkeypatch):
    scores = make_scores(tiny_vit(3))
    with pytest.raises(ValueError, match="objectives must be one of"):
        nsga2(scores, "beauty")
    with pytest.raises(ValueError, match="population must be at least 2"):
        nsga2(scores, population=1)
    with pytest.raises(ValueError, match="no images"):
        MaskScores(scores.model, scores.space, [])
    with pytest.raises(ValueError, match=r"no mask has an accuracy of 1.5"):
        pick(exhaustive(scores), min_accuracy=1.5)
    with pytest.raises(ValueError, match="method must be one of"):
        search(scores, method="best")
    monkeypatch.setitem(sys.modules, "pymoo.core.problem", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_dynvit\[search\]'"):
        nsga2(scores)


def test_picks_are_the_cheapest_that_is_good_enough_and_the_knee():
    points = [{"accuracy": a, "error": 1 - a, "cost": c} for a, c in [(0.1, 0.1), (0.8, 0.3), (0.85, 0.7), (0.9, 1.0)]]
    assert pick(points, min_accuracy=0.82)["cost"] == 0.7
    assert pick(points)["cost"] == 0.3
    assert pick(points[:1]) is points[0]


def test_a_pick_by_cost_is_the_most_accurate_that_is_cheap_enough():
    points = [
        {"accuracy": a, "cost": c, "layers": c}
        for a, c in [(0.1, 0.1), (0.8, 0.3), (0.7, 0.5), (0.8, 0.6), (0.9, 1.0)]
    ]
    for max_cost, wanted in [(0.3, 0.3), (0.55, 0.3), (0.7, 0.3), (1.0, 1.0), (0.1, 0.1)]:
        assert pick(points, "reward+layers", max_cost=max_cost)["cost"] == wanted
    with pytest.raises(ValueError, match=r"no mask has a cost of at most 0.05; the cheapest has 0.1000"):
        pick(points, max_cost=0.05)
    with pytest.raises(ValueError, match="min_accuracy or max_cost, not both: got 0.5 and 0.6"):
        pick(points, min_accuracy=0.5, max_cost=0.6)


def test_the_smallest_masks_leave_the_least_on():
    assert MaskSpace(4).smallest() == [(False, False, False)]
    alone = MaskSpace(2, "sublayer", ()).smallest()
    assert sorted(alone) == sorted(bits for bits in MaskSpace(2, "sublayer", ()).every() if sum(bits) == 1)


@pytest.mark.parametrize("bits", [(True, False, True), (False, False, False), (True, True, True)])
def test_a_pruned_plain_vit_equals_the_masked_model(tiny_vit, tmp_path, bits):
    model = gated(tiny_vit(4), None)
    model.config.layer_mask = MaskSpace(4).layer_mask(bits)
    pixel_values = images(3)
    small = burn_in(model)
    assert type(small) is ViTForImageClassification and len(small.vit.layers) == 1 + sum(bits)
    small.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        for layout in ("masked", "packed"):
            assert_close(loaded(pixel_values).logits, run(model, layout, pixel_values).logits, rtol=0, atol=1e-5)


def test_a_pruned_model_goes_on_resizing_images(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(3), resolution=16).eval()
    model.config.layer_mask = [[True, True], [False, False], [True, True]]
    burn_in(model).save_pretrained(tmp_path)
    small = DynViTForImageClassification.from_pretrained(tmp_path).eval()
    pixel_values = images(3)
    assert small.config.resolution == 16 and small.config.layer_mask is None and len(small.gates) == 2
    found, wanted = run(small, "packed", pixel_values), run(model, "packed", pixel_values)
    assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)


def test_a_pruned_dynamic_model_keeps_its_gates_and_decisions(tiny_vit, tmp_path):
    model = gated(tiny_vit(4), [{"gate": "block", "layers": [1, 2, 3]}, {"gate": "head"}], budget=0.6)
    model.config.layer_mask = [[True, True], [False, False], [True, False], [True, True]]
    pixel_values = images(6)
    small = burn_in(model)
    assert small.config.num_hidden_layers == 3 and small.config.budget == 0.6
    assert small.config.layer_mask == [[True, True], [True, False], [True, True]]
    assert small.config.gates[0]["layers"] == [1, 2] and small.config.gates[1]["layers"] == [0, 1, 2]
    small.save_pretrained(tmp_path)
    loaded = DynViTForImageClassification.from_pretrained(tmp_path).eval()
    one, other = run(model, "packed", pixel_values), run(loaded, "packed", pixel_values)
    assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
    assert torch.equal(one.decisions[2].sublayers, other.decisions[1].sublayers)


def test_nothing_to_burn_in_is_refused(tiny_vit):
    with pytest.raises(ValueError, match="no layer_mask to burn in"):
        burn_in(gated(tiny_vit(), None))


def test_a_front_needs_known_objectives(tiny_vit):
    with pytest.raises(ValueError, match="objectives must be one of"):
        front(make_scores(tiny_vit(3)), [], "beauty")


def test_a_bound_looks_at_all_masks_that_were_scored_whatever_the_front_is_of(tiny_vit):
    scores = make_scores(tiny_vit(4))
    scores.cache = {  # the cheap mask is slower, and so on no front of error and milliseconds
        "10": {"accuracy": 0.7, "error": 0.3, "cost": 0.5, "milliseconds": 2.0},
        "01": {"accuracy": 0.8, "error": 0.2, "cost": 0.6, "milliseconds": 1.9},
    }
    scores.space = MaskSpace(3)
    points = front(scores, [(True, False), (False, True)], "error+milliseconds")
    assert [point["bits"] for point in points] == ["01"]
    assert pick(all_scored(scores), "error+milliseconds", max_cost=0.55)["bits"] == "10"
    assert all_scored(scores)[1] == points[0]


def test_gates_that_draw_at_random_are_not_searched_for_masks(tiny_vit):
    for gate in ({"gate": "random"}, {"gate": "token", "score": "random", "top": 8}):
        with pytest.raises(ValueError, match=r"beside gates that draw at random no two masks .*'random'"):
            make_scores(tiny_vit(4), [gate])
        make_scores(tiny_vit(4), [gate], gating="open")
