"""Harm in closed form: scores of heads and sub-layers learn what skipping costs, and trial divides the budget."""

import pytest
import torch
from trainers import build_trainer

from hf_dynvit import DynViTForImageClassification, calibrate, fit_gates
from hf_dynvit.model.budgets import shift_gates
from hf_dynvit.model.preset_gates import preset_gates
from hf_dynvit.training import closed_form
from hf_dynvit.training.harm import _harm, _held, _set_scores, check_units, fit_harm
from hf_dynvit.training.least_squares import Moments
from hf_dynvit.training.sharing import OPEN, SHARES, share_budget


HEADS = {"gate": "head", "layers": [0, 1]}
SUBLAYERS = {"gate": "sublayer", "layers": [1], "init_bias": 2.0}
MERGE = {"gate": "merge", "layers": [0, 1]}


def gated(vit, *gates):
    torch.manual_seed(0)
    return DynViTForImageClassification.from_vit(vit(), gates=list(gates)).eval()


def batches(count=4, size=16):
    return list(torch.randn(count, size, 3, 32, 32, generator=torch.Generator().manual_seed(3)))


def test_harm_is_the_divergence_without_each_unit_per_cost_that_it_saves(tiny_vit):
    model, pixels = gated(tiny_vit, SUBLAYERS), batches()[0]
    gates = check_units(model)
    with torch.no_grad(), _held(gates):
        ((reads, found),) = _harm(model, gates, pixels).values()
        whole = model(pixels, gating="open")
        for sublayer in (0, 1):
            mask = [[True, True], [True, True]]
            mask[1][sublayer] = False
            model.config.layer_mask = mask
            skipped = model(pixels, gating="open")
            model.config.layer_mask = None
            kl = torch.distributions.kl_divergence(
                *(torch.distributions.Categorical(logits=one.logits) for one in (whole, skipped))
            )
            saved = (whole.cost - skipped.cost).mean()
            torch.testing.assert_close(found[:, sublayer], (kl / saved).log(), rtol=1e-2, atol=5e-2)
    assert reads.shape == (16, model.config.hidden_size) and found.shape == (16, 2)
    assert gates[1, "sublayers"].score.bias.tolist() == [2.0, 2.0]  # held open, and left as it was


def test_scores_follow_harm_and_nothing_else_changes(tiny_vit):
    model, images = gated(tiny_vit, HEADS, SUBLAYERS, MERGE), batches()
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    explained = fit_harm(model, images, strength=2.0)
    assert model.training and set(explained) == {(0, "heads"), (1, "heads"), (1, "sublayers")}
    assert all(0 <= share <= 1 for share in explained.values())
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all("heads" in name or "sublayers" in name for name in changed)
    model.eval()
    gates = check_units(model)
    with torch.no_grad(), _held(gates):
        parts = [_harm(model, gates, one) for one in images]
    logits, harm = [], []
    for place, gate in gates.items():
        reads, found = (torch.cat(column) for column in zip(*(part[place] for part in parts), strict=True))
        logits.append(gate.score(reads).detach().mean(0))
        harm.append(found.mean(0))
    logits, harm = torch.cat(logits), torch.cat(harm)
    torch.testing.assert_close(logits, 2.0 * (harm - harm.mean()), rtol=1e-3, atol=1e-2)  # one scale for all units


@pytest.mark.parametrize("linear", (True, False), ids=("what is read says it", "it says nothing"))
def test_scores_learn_what_explains_other_images_and_else_the_mean_alone(tiny_vit, linear):
    gates = check_units(gated(tiny_vit, SUBLAYERS))
    ((place, gate),) = gates.items()
    torch.manual_seed(0)
    reads, noise = torch.randn(2, 20, 32), torch.randn(2, 20, 2)  # fewer images than channels
    harm = reads[..., :2] + 0.1 * noise if linear else noise
    halves = [{place: Moments()} for _ in range(2)]
    for half, x, y in zip(halves, reads, harm, strict=True):
        half[place].add(x, y)
    explained = _set_scores(gates, halves, 1.0, True)[place]
    length = gate.score.weight.norm().item()
    if linear:
        assert explained > 0.3 and length > 0.5
    else:
        assert explained < 0.02 and length < 0.05
        means = harm.flatten(0, 1).mean(0)
        torch.testing.assert_close(gate.score.bias.detach(), means - means.mean(), rtol=0, atol=0.02)


@pytest.mark.parametrize("gates", ([MERGE, SUBLAYERS], [SUBLAYERS | {"layers": [0, 1]}]), ids=("beside", "alone"))
def test_a_budget_is_divided_as_it_is_nearest_to_the_dense_model(tiny_vit, gates):
    model, images, budget = gated(tiny_vit, *gates), batches(), 0.7
    with torch.no_grad():
        shift_gates(list(check_units(model).values()), OPEN)
    if len(gates) == 2:
        calibrate(model, images, budget)
    fit_harm(model, images)
    tried = share_budget(model, images, budget, (0.05, 0.2))
    assert [one.share for one in tried] == ([1 - budget] if len(gates) == 1 else [one.share for one in tried])
    assert len(tried) == len(gates) and tried == sorted(tried, key=lambda one: one.distance)
    with torch.no_grad():
        costs = torch.cat([model(one).cost for one in images])
    assert costs.mean().item() == pytest.approx(tried[0].cost, abs=1e-6) == pytest.approx(budget, abs=0.03)


def test_with_no_share_all_stay_open_whatever_is_calibrated(tiny_vit):
    model, images = gated(tiny_vit, MERGE, SUBLAYERS), batches()
    fit_harm(model, images)
    share_budget(model, images, 0.8, (0.0,))
    calibrate(model, images, 0.75)
    decisions = model(images[0]).decisions
    assert decisions[1].sublayers.all()


def test_what_does_not_go_is_refused(tiny_vit):
    images = batches(2)
    with pytest.raises(ValueError, match="gates of heads and sub-layers"):
        fit_harm(gated(tiny_vit, MERGE), images)
    with pytest.raises(ValueError, match="at least two images"):
        fit_harm(gated(tiny_vit, SUBLAYERS), [images[0][:1]])
    masked = gated(tiny_vit, SUBLAYERS)
    masked.config.layer_mask = [[True, True], [False, True]]
    drawing = gated(tiny_vit, SUBLAYERS, {"gate": "token", "score": "random", "keep": 0.5, "layers": [1]})
    for model, said in ((masked, "without a mask of layers"), (drawing, "draw at random nothing can be compared")):
        with pytest.raises(ValueError, match=said):
            fit_harm(model, images)
    single = DynViTForImageClassification.from_vit(tiny_vit(num_labels=1), gates=[SUBLAYERS])
    with pytest.raises(ValueError, match="divergence of class probabilities: got num_labels 1"):
        fit_harm(single, images)
    with pytest.raises(ValueError, match="got weights in torch.bfloat16"):
        fit_gates(gated(tiny_vit, SUBLAYERS).bfloat16(), images, 0.8)
    with pytest.raises(ValueError, match="no division of the budget gives finite predictions"):
        share_budget(gated(tiny_vit, SUBLAYERS), [images[0] * float("nan")], 0.8, (0.1,))
    with pytest.raises(ValueError, match="strength must be finite"):
        fit_harm(gated(tiny_vit, SUBLAYERS), images, strength=-1.0)
    with pytest.raises(ValueError, match=r"shares of heads and sub-layers must be some of \[0, 1\)"):
        share_budget(gated(tiny_vit, SUBLAYERS), images, 0.8, (1.0,))


def test_a_training_fits_them_before_its_first_step_and_meets_the_budget(tiny_vit, tmp_path):
    options = {"harm_images": 32, "harm_shares": [0.1], "importance_images": 32, "calibrate_first": True}
    trainer = build_trainer(
        tiny_vit, tmp_path, [MERGE, SUBLAYERS], 0.75, **options, freeze_gates_at=0.0, calibration_images=64
    )
    logged, log = {}, trainer.log
    trainer.log = lambda logs, *args: (logged.update(logs), log(logs, *args))
    trainer.train()
    assert logged["harm_share"] == 0.1 and logged["harm_distance"] > 0 and "importance_explained" in logged
    biases = trainer.model.gates[1]["sublayers"].score.bias.tolist()
    assert biases[0] != biases[1]  # no more what they began with
    assert trainer.evaluate()["eval_cost"] == pytest.approx(0.75, abs=0.06)
    for gates, changed, said in (
        ([MERGE], {}, "gates of heads and sub-layers"),
        ([MERGE, SUBLAYERS], {"harm_shares": [1.0]}, "shares of heads and sub-layers must be"),
        ([MERGE, SUBLAYERS], {"harm_images": -1}, "harm_images must be at least 0, got -1"),
        ([MERGE, SUBLAYERS], {"harm_images": 1}, "harm_images must be at least 2"),
        ([MERGE, SUBLAYERS], {"calibrate_first": False}, "given with calibrate_first"),
        ([MERGE, SUBLAYERS], {"harm_images": 0}, "harm_shares are for harm_images, and there are none"),
        (
            [MERGE, SUBLAYERS],
            {"harm_per_image": False, "freeze_gates_at": 0.5},
            "they would learn again: give freeze_gates_at 0",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            build_trainer(tiny_vit, tmp_path, gates, 0.75, **{"freeze_gates_at": 0.0, **options, **changed}).train()


def test_all_kinds_are_brought_to_a_budget_in_one_call(tiny_vit):
    model, images = gated(tiny_vit, *preset_gates("adavit-plus", tiny_vit().config)), batches(2)
    tried = fit_gates(model, images, 0.8)
    assert {one.share for one in tried} == set(SHARES) and tried[0].cost == pytest.approx(0.8, abs=0.05)
    with torch.no_grad():
        again = torch.cat([model(one).cost for one in images]).mean().item()
    assert again == pytest.approx(tried[0].cost, abs=1e-6) and model.config.budget == 0.8
    assert fit_gates(gated(tiny_vit, MERGE), images, 0.8) == []
    units = gated(tiny_vit, HEADS, SUBLAYERS)
    fit_gates(units, images, 0.8)
    assert units.config.budget == 0.8


def test_what_a_unit_saves_is_its_own_and_the_size_of_batches_changes_nothing(tiny_vit):
    """Without a head later gates of tokens merge otherwise, which may cost more than the head saves."""
    merging = MERGE | {"layers": [0, 1, 2, 3]}
    torch.manual_seed(0)
    vit, images = tiny_vit(4), batches(2)
    gates = [merging, {"gate": "head", "layers": [0, 1, 2, 3], "init_bias": OPEN}]
    models = [DynViTForImageClassification.from_vit(vit, gates=gates).eval() for _ in range(2)]
    calibrate(models[0], images, 0.7)
    with torch.no_grad():
        shift_gates(list(check_units(models[0]).values()), OPEN)
    models[1].load_state_dict(models[0].state_dict())
    fit_harm(models[0], images)
    fit_harm(models[1], [part for batch in images for part in batch.split(4)])
    for one, other in zip(*(check_units(model).values() for model in models), strict=True):
        torch.testing.assert_close(one.score.bias, other.score.bias, rtol=1e-3, atol=1e-2)


def test_the_twin_skips_the_same_in_all_images(tiny_vit):
    model, images = gated(tiny_vit, SUBLAYERS | {"layers": [0, 1]}), batches()
    assert set(fit_harm(model, images, per_image=False).values()) == {0.0}
    share_budget(model, images, 0.7)
    with torch.no_grad():
        costs = torch.cat([model(one).cost for one in images])
    assert costs.std() < 1e-6 and costs.mean() < 0.9


def test_a_division_that_misses_the_budget_does_not_win(tiny_vit):
    """One layer merges: open heads and sub-layers cannot be paid from it, and are nearest to the dense model."""
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(
        tiny_vit(4), gates=[MERGE | {"layers": [3]}, {"gate": "sublayer", "layers": [1, 2, 3]}]
    )
    tried = fit_gates(model, batches(2), 0.8, (0.0, 0.06, 0.12, 0.2))
    off = [abs(one.cost - 0.8) for one in tried]
    assert tried[0].share > 0 and off[0] == min(off) and off[-1] > 0.02


def test_it_divides_in_evaluation_mode_without_a_table_and_leaves_the_mode(tiny_vit):
    torch.manual_seed(0)
    vit = tiny_vit(hidden_dropout_prob=0.5)
    models = [
        DynViTForImageClassification.from_vit(vit, gates=[MERGE, SUBLAYERS]).train(mode) for mode in (True, False)
    ]
    found = [fit_gates(model, batches(2), 0.8) for model in models]
    assert found[0] == found[1] and [model.training for model in models] == [True, False]
    calibrate(models[1], batches(2), budgets=[0.7, 0.8])
    share_budget(models[1], batches(2), 0.8)
    assert models[1].config.budget_shifts is None


def test_errors_come_before_anything_is_fitted_and_a_failure_leaves_the_gates(tiny_vit, monkeypatch):
    model, images = gated(tiny_vit, MERGE, SUBLAYERS), batches(2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def unchanged():
        return all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

    for changed, said in (
        ({"shares": ()}, "shares of heads and sub-layers must be some of"),
        ({"budget": 1.5}, "budget"),
        ({"batches": [images[0][:1]]}, "at least two images"),
    ):
        with pytest.raises(ValueError, match=said):
            fit_gates(model, **{"batches": images, "budget": 0.8, **changed})
        assert unchanged()

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(closed_form, "fit_harm", broken)
    bias = model.gates[1]["sublayers"].score.bias.clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        closed_form.fit_units(model, images, 0.8)
    assert torch.equal(model.gates[1]["sublayers"].score.bias, bias)
