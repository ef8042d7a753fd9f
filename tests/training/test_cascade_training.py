"""A cascade is calibrated look by look, then by confidence; training takes its looks in turn, each at its own budget."""

import pytest
import torch
from models import gated, images
from torch.testing import assert_close
from trainers import build_trainer

from hf_dynvit import DynViTConfig, DynViTForImageClassification, calibrate, fit_importance
from hf_dynvit.training.calibration import check_budgets
from hf_dynvit.training.cascade_calibration import POINTS, read_looks


MERGE = [{"gate": "merge", "distance": 4.0, "layers": [1]}]
LOOKS = [{"budget": 0.52, "resolution": 24}, {"budget": 0.9}]


def cascade(vit, gates=MERGE, looks=LOOKS, budget=0.8):
    torch.manual_seed(0)
    return gated(vit, gates, cascade=looks, budget=budget).eval()


@torch.no_grad()
def mean_cost(model, batches, **options):
    return torch.cat([model(batch, **options).cost for batch in batches]).mean().item()


def test_each_look_meets_its_budget_and_all_looks_the_whole(tiny_vit):
    model, batches = cascade(tiny_vit()), [images(32), images(32)]
    confidence, cost = calibrate(model, batches, 0.8)
    for index, look in enumerate(LOOKS):
        assert mean_cost(model, batches, look=index) == pytest.approx(look["budget"], abs=0.03)
    assert mean_cost(model, batches) == pytest.approx(cost) == pytest.approx(0.8, abs=0.03)
    table = model.config.budget_confidences
    assert 2 < len(table) <= POINTS and model.config.budget == 0.8
    assert table[0][1] <= confidence <= table[-1][1]
    with torch.no_grad():
        sure = torch.cat([model(batch, look=0).logits.softmax(-1).amax(-1) for batch in batches])
        again = torch.cat([model(batch).looks for batch in batches]) == 2
    assert_close(again, sure < confidence)
    for budget, _ in table:
        assert mean_cost(model, batches, budget=budget) == pytest.approx(budget, abs=0.03)


def test_three_looks(tiny_vit):
    looks = [{"budget": 0.2, "resolution": 16}, *LOOKS]
    model, batches = cascade(tiny_vit(), looks=looks, budget=0.5), [images(64)]
    _, cost = calibrate(model, batches, 0.5)
    with torch.no_grad():
        out = model(batches[0])
    assert cost == pytest.approx(0.5, abs=0.05) and set(out.looks.tolist()) == {1, 2, 3}


def test_a_cascade_of_sizes_alone_needs_no_gates(tiny_vit, tmp_path):
    looks = read_looks(["16@0.3", "24@0.6"])  # all looks together cost less than the dense model
    model = DynViTForImageClassification.from_vit(tiny_vit(), budget=0.7, cascade=looks)
    _, cost = calibrate(model, [images(64)], 0.7)
    assert cost == pytest.approx(0.7, abs=0.03)
    assert all(look["shift"] == 0.0 for look in model.config.cascade)
    model.save_pretrained(tmp_path)
    assert DynViTForImageClassification.from_pretrained(tmp_path).config.budget_confidences[-1][1] > 1


def test_other_aims_and_budgets_out_of_reach_are_refused(tiny_vit):
    model, batches = cascade(tiny_vit()), [images(8)]
    with pytest.raises(ValueError, match="calibrated for one budget"):
        calibrate(model, batches, budgets=[0.6, 0.8])
    with pytest.raises(ValueError, match="out of reach of this cascade"):
        calibrate(model, batches, 0.2)
    with pytest.raises(ValueError, match="out of reach of a cascade"):
        check_budgets(model, [0.2])
    assert check_budgets(model, [0.8]) <= 1.0


def test_words_name_looks():
    assert read_looks(["160@0.2", "224@1"]) == [{"resolution": 160, "budget": 0.2}, {"resolution": 224, "budget": 1.0}]
    assert read_looks([]) is None
    config = DynViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    first, second = read_looks(["auto"], config, 0.3)
    assert first == {"resolution": 160, "budget": 0.2} and second == {"resolution": 224, "budget": 0.5}
    with pytest.raises(ValueError, match="auto or looks such as 160@0.2 224@0.5"):
        read_looks(["160"])


def test_a_model_can_be_given_looks_and_rid_of_them(tiny_vit):
    model, x = gated(tiny_vit(), MERGE, resolution=24).eval(), images(3)
    with torch.no_grad():
        before = model(x).logits
        assert model.set_cascade(LOOKS)(x).looks.tolist() == [2, 2, 2] and model.config.resolution is None
        with pytest.raises(ValueError, match="2 to 8 looks"):
            model.set_cascade(LOOKS[:1])
        assert_close(model.set_cascade(None)(x, interpolate_pos_encoding=True).logits.shape, before.shape)


def test_importance_is_learned_in_all_looks(tiny_vit):
    shares = []
    for looks in (LOOKS, [LOOKS[0], {"budget": 0.9, "resolution": 16}]):
        model = cascade(tiny_vit(), looks=looks)
        fit_importance(model, [images(8)])
        shares.append(model.gates[1]["attention_tokens"].score.weight.clone())
    assert not torch.equal(*shares)  # the last look alone differs, and counts


def test_training_takes_looks_in_turn_and_ends_with_a_table(tiny_vit, tmp_path):
    options = {"freeze_gates_at": 0.0, "max_steps": 24, "per_device_train_batch_size": 16, "tuning_gain": 3.0}
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8, importance_images=32, calibrate_first=True, **options)
    trainer.model.set_cascade(LOOKS)
    seen = []

    def watch(model, args, kwargs, out):
        if model.training:
            seen.append((kwargs["look"], out.cost.mean().item()))

    handle = trainer.model.register_forward_hook(watch, with_kwargs=True)
    trainer.train()
    handle.remove()
    assert [look for look, _ in seen] == [0, 1] * 12
    for index, look in enumerate(LOOKS):
        costs = [cost for turn, cost in seen if turn == index]
        assert sum(costs) / len(costs) == pytest.approx(look["budget"], abs=0.05)
    assert trainer.model.config.budget_confidences is not None
    assert trainer.evaluate()["eval_cost"] == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"freeze_gates_at": 0.0, "tuning_budgets": [0.5, 0.6]}, "no tuning_budgets"),
        ({"objective": "usage"}, "does not follow"),
    ],
)
def test_what_does_not_go_with_a_cascade_is_refused(tiny_vit, tmp_path, options, message):
    gates = [{"gate": "merge", "distance": 4.0, "layers": [1]}]
    given = build_trainer(tiny_vit, tmp_path, gates, 0.8)
    given.model.set_cascade(LOOKS)
    args = type(given.args)(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    with pytest.raises(ValueError, match=message):
        type(given)(model=given.model, args=args, train_dataset=given.train_dataset)
