"""One checkpoint for every budget: a table of shifts decides as a model whose thresholds were moved, image by image."""

import json
import threading

import pytest
import torch
from models import GATE_SETS, LEARNED_SETS, gated, images, run
from torch.testing import assert_close
from transformers import AutoConfig

from hf_dynvit import DynViTConfig, DynViTForImageClassification
from hf_dynvit.model import Exploration
from hf_dynvit.model.budgets import MOST_BUDGETS, shift_gates


TABLE = [[0.3, -2.5], [0.5, -0.5], [0.8, 1.0]]  # of no model: what is told apart here are shifts


def dialled(vit, gates, budget=0.5):
    """A model with `TABLE`."""
    model = gated(vit, gates, budget=budget)
    model.config.budget_shifts = TABLE
    return model


def moved(model, shift):
    """The same model without a table, whose biases are moved."""
    twin = DynViTForImageClassification(model.config).eval()
    twin.load_state_dict(model.state_dict())
    twin.config = type(model.config)(**{**model.config.to_dict(), "budget_shifts": None})
    shift_gates(twin.learned_gates(), shift)
    return twin


def assert_alike(one, other):
    assert_close(one.logits, other.logits, rtol=0, atol=1e-6)
    assert_close(one.cost, other.cost, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("gates", LEARNED_SETS)
def test_a_budget_of_the_table_decides_as_moved_biases_do(tiny_vit, gates, layout):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS[gates]), images(4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    costs = []
    for budget, shift in (*TABLE, [0.4, -1.5]):
        out = run(model, layout, pixel_values, budget=budget)
        assert_alike(out, run(moved(model, shift), layout, pixel_values))
        costs.append(out.cost.mean().item())
    assert costs[0] <= costs[3] <= costs[1] <= costs[2]
    assert (costs[0] < costs[2]) != any("keep" in entry for entry in GATE_SETS[gates])  # which keep fixed numbers
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("gates", LEARNED_SETS)
def test_layouts_agree_on_budgets_for_each_image(tiny_vit, gates):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS[gates]), images(4)
    budgets = torch.tensor([0.3, 0.8, 0.45, 0.5])
    packed, masked = (run(model, layout, pixel_values, budget=budgets) for layout in ("packed", "masked"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)
    for index, budget in enumerate(budgets.tolist()):
        alone = run(model, "packed", pixel_values[index : index + 1], budget=budget)
        assert_close(packed.logits[index], alone.logits[0], rtol=0, atol=1e-5)
        assert_close(packed.cost[index], alone.cost[0], rtol=0, atol=1e-6)


def test_the_budget_that_is_set_counts_where_a_call_names_none(tiny_vit, tmp_path):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["patch for good"]), images(4)
    assert_alike(run(model, None, pixel_values), run(model, None, pixel_values, budget=0.5))
    assert model.set_budget(0.65) is model
    assert_alike(run(model, None, pixel_values), run(moved(model, 0.25), None, pixel_values))
    model.save_pretrained(tmp_path)
    loaded = DynViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.budget_shifts == TABLE and loaded.config.budget == 0.65
    assert_alike(run(loaded, None, pixel_values), run(model, None, pixel_values))
    assert_alike(run(loaded, None, pixel_values, budget=0.3), run(model, None, pixel_values, budget=0.3))


@pytest.mark.parametrize("gating", ["threshold", "act"])
def test_gates_that_decide_ahead_follow_the_budget(tiny_vit, gating):
    gates = [{"gate": "block", "upfront": True, "layers": [1, 2, 3]}]
    model, pixel_values = dialled(tiny_vit(4), gates), images(6)
    budgets = torch.tensor([0.3, 0.8, 0.3, 0.8, 0.6, 0.6])
    out = run(model, "packed", pixel_values, gating=gating, budget=budgets)
    assert_close(
        out.logits, run(model, "masked", pixel_values, gating=gating, budget=budgets).logits, rtol=0, atol=1e-4
    )
    assert_alike(
        run(model, "packed", pixel_values, gating=gating, budget=0.3),
        run(moved(model, -2.5), "packed", pixel_values, gating=gating),
    )


def test_samples_follow_the_budget_and_gradients_reach_gates(tiny_vit):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["all"]).train(), images(4)
    model.activation_checkpointing_enable()
    torch.manual_seed(0)
    out = model(pixel_values, budget=torch.tensor([0.3, 0.8, 0.3, 0.8]))
    out.cost.mean().backward()
    torch.manual_seed(0)
    cheap = model(pixel_values, budget=0.3)
    assert torch.equal(out.cost[[0, 2]], cheap.cost[[0, 2]]) and out.cost[[1, 3]].mean() > cheap.cost[[1, 3]].mean()
    assert all(parameter.grad.abs().sum() > 0 for gate in model.learned_gates() for parameter in gate.parameters())


def test_threads_have_budgets_of_their_own(tiny_vit):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["patch for good"]), images(2)
    expected, wrong = {budget: model(pixel_values, budget=budget).cost for budget, _ in TABLE}, []

    def serve(budget):
        costs = [model(pixel_values, budget=budget).cost for _ in range(5)]
        wrong.extend(budget for cost in costs if not torch.equal(cost, expected[budget]))

    threads = [threading.Thread(target=serve, args=(budget,)) for budget in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len({cost.sum().item() for cost in expected.values()}) == len(TABLE)


@pytest.mark.parametrize("gates", ["all", "patch merged", "merge by distance"])
def test_a_compiled_model_takes_a_budget_for_each_image(tiny_vit, gates):
    torch._dynamo.reset()
    model, pixel_values = dialled(tiny_vit(2), GATE_SETS[gates]), images(3)
    model.layout = "masked"
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for budget in (None, 0.4, torch.tensor([0.3, 0.8, 0.5])):
            expected, out = (forward(pixel_values, budget=budget) for forward in (model, compiled))
            assert_close(out.logits, expected.logits)
            assert torch.equal(out.cost, expected.cost)
    torch._dynamo.reset()


def test_a_shift_that_is_given_counts_in_place_of_the_budget(tiny_vit):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["patch for good"]), images(4)
    out = run(model, None, pixel_values, exploration=Exploration(shift=-2.5))
    assert_alike(out, run(model, None, pixel_values, budget=0.3))


def test_dropping_the_table_changes_no_decision(tiny_vit):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["all"], budget=0.4), images(4)
    before = run(model, None, pixel_values)
    assert model.drop_budgets() is model and model.config.budget_shifts is None
    assert_alike(run(model, None, pixel_values), before)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.drop_budgets()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_no_images_need_no_budgets(tiny_vit):
    model = dialled(tiny_vit(), GATE_SETS["patch for good"])
    assert model(images(0), budget=torch.zeros(0)).cost.shape == (0,)


def test_what_the_table_cannot_say_is_refused(tiny_vit):
    model, pixel_values = dialled(tiny_vit(), GATE_SETS["patch for good"]), images(2)
    for budget in (0.2, 0.81, torch.tensor([0.5, 0.2]), torch.tensor([0.81, 0.5])):
        with pytest.raises(ValueError, match=r"a budget of 0\..* is out of reach: .* budgets from 0.3 to 0.8"):
            model(pixel_values, budget=budget)
    for budget in (0, 1.5, "0.5", True, torch.tensor([0.5, float("nan")])):
        with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got"):
            model(pixel_values, budget=budget)
    for budget in (torch.tensor(0.5), torch.tensor([0.5] * 3), torch.tensor([1, 1])):
        with pytest.raises(ValueError, match=r"budget of a batch of 2 must be a number or 2 floats, got torch\."):
            model(pixel_values, budget=budget)
    with pytest.raises(ValueError, match="a budget of 0.9 is out of reach"):
        model.set_budget(0.9)
    assert model.config.budget == 0.5
    plain = gated(tiny_vit(), GATE_SETS["patch for good"])
    with pytest.raises(ValueError, match="budget=0.5 needs a model that has thresholds for several budgets"):
        plain(pixel_values, budget=0.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"a list of 1 to 64 pairs \(budget, shift\), got 0 of them"),
        ([[0.5, float(n)] for n in range(MOST_BUDGETS + 1)], "got 65 of them"),
        ([0.5, 1.0], "must hold pairs .*, got 0.5"),
        ([[0.5, 1.0, 2.0]], "must hold pairs .*, got .*2.0"),
        ([[0.5, float("nan")]], r"shifts .* must be in \[-100.0, 100.0\], got nan"),
        ([[0.5, float("inf")]], "shifts .*, got inf"),
        ([[0.5, 1e4]], "shifts .*, got 10000.0"),
        ([[0.5, "1"]], "shifts .*, got '1'"),
        ([[0.5, True]], "shifts .*, got True"),
        ([[1.5, 0.0]], r"budget must be in \(0, 1\], got 1.5"),
        ([[float("nan"), 0.0]], r"budget must be in \(0, 1\], got nan"),
        ([[0.5, 0.0], [0.4, 1.0]], r"must both rise, got \[0.4, 1.0\] after \[0.5, 0.0\]"),
        ([[0.5, 0.0], [0.5 + 1e-9, 1.0]], r"must both rise, got \[0.500000001, 1.0\]"),  # the same in 32 bit
        ([[0.4, 0.0], [0.5, 0.0]], r"must both rise, got \[0.5, 0.0\] after \[0.4, 0.0\]"),
        ([[0.6, 0.0]], "a budget of 0.5 is out of reach: .* from 0.6 to 0.6"),
    ],
    ids=str,
)
def test_a_table_that_is_none_is_refused_when_it_is_read(tmp_path, table, message):
    fields = {"budget": 0.5, "budget_shifts": table}
    with pytest.raises(ValueError, match=message):
        DynViTConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dynvit", **fields}))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)
