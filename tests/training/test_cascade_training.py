"""A cascade is calibrated look by look, then by confidence; training takes its looks in turn, each at its own budget."""

import copy

import pytest
import torch
from models import gated, images
from torch.testing import assert_close
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTConfig, DynViTForImageClassification, calibrate, fit_importance
from hf_dynvit.objectives.task_loss import distillation_loss
from hf_dynvit.training import cascade_calibration
from hf_dynvit.training.calibration import check_budgets
from hf_dynvit.training.cascade_calibration import POINTS, confidences
from hf_dynvit.training.checks import check_cascade
from hf_dynvit.training.looks import read_looks, words_of
from hf_dynvit.training.preparation import prepare


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
    assert 2 < len(table) <= POINTS + 1 and model.config.budget == 0.8
    assert table[0][1] <= confidence <= table[-1][1]
    with torch.no_grad():
        sure = torch.cat([model(batch, look=0).logits.softmax(-1).amax(-1) for batch in batches])
        again = torch.cat([model(batch).looks for batch in batches]) == 2
    assert_close(again, sure < confidence)
    for budget, _ in table:
        assert mean_cost(model, batches, budget=budget) == pytest.approx(budget, abs=0.03)


def test_looks_so_sure_that_floats_are_equal_cost_what_the_table_says(tiny_vit):
    model, batches = cascade(tiny_vit()), [images(64)]
    with torch.no_grad():
        model.classifier.weight *= 150  # many probabilities are 1 in 32 bit, and not in 64
    calibrate(model, batches, 0.8)
    with torch.no_grad():
        sure = model(batches[0], look=0).logits.softmax(-1).amax(-1)
        apart = model(batches[0], look=0).logits.double().softmax(-1).amax(-1)
    assert (sure == 1).sum() > 8 and len(apart[sure == 1].unique()) > 4
    table = model.config.budget_confidences
    for budget, _ in table:
        assert mean_cost(model, batches, budget=budget) == pytest.approx(budget, abs=1e-5)
    least, most = (mean_cost(model, batches, look=look) for look in range(2))
    assert least < table[-1][0] < least + 0.9 * most  # what all of the surest images cost again is no budget
    for part in (0.3, 0.7):  # between two entries
        budget = table[0][0] + part * (table[-1][0] - table[0][0])
        assert mean_cost(model, batches, budget=budget) == pytest.approx(budget, abs=0.02)
    with pytest.raises(ValueError, match="out of reach"):
        model.set_budget(0.99)


def test_a_cascade_is_not_the_list_it_was_made_of(tiny_vit):
    gates, looks = copy.deepcopy(MERGE), copy.deepcopy(LOOKS)
    model = cascade(tiny_vit(), gates, looks)
    looks[0]["budget"], gates[0]["distance"] = 0.1, 1.0
    assert model.config.cascade == LOOKS and model.config.gates[0]["distance"] == 4.0


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
    for index, look in enumerate(model.config.cascade):
        assert look["budget"] == pytest.approx(mean_cost(model, [images(2)], look=index), abs=1e-4)
    model.save_pretrained(tmp_path)
    assert (
        DynViTForImageClassification.from_pretrained(tmp_path).config.budget_confidences
        == model.config.budget_confidences
    )


def test_sizes_that_do_not_begin_with_the_cheapest_are_refused_whatever_they_are_said_to_cost(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(), budget=0.7, cascade=read_looks(["32@0.3", "24@0.6"]))
    with pytest.raises(ValueError, match=r"begin with the cheapest, got budgets \[1\.0"):
        calibrate(model, [images(4)], 1.0)
    with pytest.raises(ValueError, match=r"begin with the cheapest, got budgets \[1\.0"):
        check_budgets(model, [1.0])


def test_other_aims_and_budgets_out_of_reach_are_refused(tiny_vit):
    model, batches = cascade(tiny_vit()), [images(8)]
    with pytest.raises(ValueError, match="calibrated for one budget"):
        calibrate(model, batches, budgets=[0.6, 0.8])
    with pytest.raises(ValueError, match="out of reach of this cascade: its first look costs 0.520"):
        check_budgets(model, [0.2])
    first, last = check_budgets(model, [0.8])
    assert 0.5 < first < 0.6 and last == 1.0  # all of the look's gates open
    plain = DynViTForImageClassification.from_vit(tiny_vit(), budget=0.7, cascade=read_looks(["24@0.3", "32@1.0"]))
    with pytest.raises(ValueError, match="its first look costs 0.5"):  # whatever its budget says
        check_budgets(plain, [0.4])


def test_a_budget_out_of_reach_becomes_the_nearest(tiny_vit, monkeypatch):
    said = []
    monkeypatch.setattr(cascade_calibration.logger, "warning", said.append)
    model, batches = cascade(tiny_vit()), [images(32)]
    _, cost = calibrate(model, batches, 0.3)
    assert cost == pytest.approx(0.52, abs=0.03) and model.config.budget == pytest.approx(cost, abs=0.01)
    assert len(said) == 1 and "the budget is 0.3, and the nearest mean cost of this cascade is 0.5" in said[0]


def test_the_last_look_decides_by_biases_alone(tiny_vit):
    model, batches = cascade(tiny_vit()), [images(32)]
    calibrate(model, batches, 0.8)
    assert model.config.cascade[1]["shift"] == 0.0 != model.config.cascade[0]["shift"]
    before = mean_cost(model, batches, look=1)
    assert mean_cost(model.set_cascade(None), batches) == pytest.approx(before)


def test_every_budget_of_the_table_is_what_it_costs(tiny_vit):
    torch.manual_seed(0)
    sure, spent = torch.rand(2, 1000).double(), torch.tensor([[0.1], [0.2], [0.4]]).double().expand(3, 1000)
    table = confidences(sure, spent, 0.333)
    assert len(table) == POINTS + 1 and min(abs(cost - 0.333) for cost, _ in table) < 0.001
    assert table[0][0] == pytest.approx(0.1) and table[-1][0] == pytest.approx(0.7)
    for (low, lower), (high, higher) in zip(table, table[1:], strict=False):  # and what lies between them
        confidence, wanted = (lower + higher) / 2, (low + high) / 2
        again = sure[0] < confidence
        found = 0.1 + 0.2 * again.double().mean() + 0.4 * (again & (sure[1] < confidence)).double().mean()
        assert found.item() == pytest.approx(wanted, abs=0.01)


def test_words_name_looks():
    first, second = read_looks(["160@0.2", "224@1"])
    assert first == {"resolution": 160, "budget": 0.2, "weight": 1.0}
    assert second == {"resolution": 224, "budget": 1.0, "weight": 4.0}  # a later look has seen more
    assert [look["weight"] for look in read_looks(["160@0.2x0.5", "192@0.3", "224@1x3"])] == [0.5, 4, 3]
    assert read_looks(words_of(read_looks(["160@0.2x0.5", "224@1"]))) == read_looks(["160@0.2x0.5", "224@1"])
    assert (
        read_looks(words_of([{"resolution": 160, "budget": 0.2}, {"resolution": 224, "budget": 0.5}]))[1]["weight"]
        == 1
    )
    assert read_looks([]) is None
    config = DynViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    first, second = read_looks(["auto"], config, 0.3)
    assert first == {"resolution": 160, "budget": 0.2, "weight": 1}
    assert second == {"resolution": 224, "budget": 0.5, "weight": 4}
    half = read_looks(["auto"], config, 0.5)
    assert [look["budget"] for look in half] == [0.3333, 0.8333] and half[0]["resolution"] < half[1]["resolution"]
    assert half == read_looks(["auto"], config, 0.65) == read_looks(["auto"], config, 1.0)  # for more images
    every = read_looks(["every"], config, 0.3)
    assert every == read_looks(["every"], config, 0.65) and [look["budget"] for look in every] == [0.2, 0.3333, 0.8333]
    assert [look["weight"] for look in every] == [1, 4, 16]
    assert [look["resolution"] for look in every] == [160, 192, 224]
    assert [look["resolution"] for look in read_looks(["every"], config, 0.5, gated=False)] == [112, 128, 208]
    with pytest.raises(ValueError, match="auto, every, or looks such as 160@0.2 224@0.5x4"):
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


@pytest.mark.parametrize("together", [False, True])
def test_training_takes_looks_in_turn_or_together_and_ends_with_a_table(tiny_vit, tmp_path, together):
    options = {"freeze_gates_at": 0.0, "max_steps": 24, "per_device_train_batch_size": 16, "tuning_gain": 3.0}
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8, importance_images=32, calibrate_first=True, **options)
    trainer.model.set_cascade(LOOKS)
    trainer.args.looks_together = together
    seen = []

    def watch(model, args, kwargs, out):
        if model.training:
            seen.append((kwargs["look"], out.cost.mean().item()))

    handle = trainer.model.register_forward_hook(watch, with_kwargs=True)
    trainer.train()
    handle.remove()
    assert [look for look, _ in seen] == [0, 1] * (24 if together else 12)
    for index, look in enumerate(LOOKS):
        costs = [cost for turn, cost in seen if turn == index]
        assert sum(costs) / len(costs) == pytest.approx(look["budget"], abs=0.05)
    assert trainer.model.config.budget_confidences is not None
    assert trainer.evaluate()["eval_cost"] == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize("teacher", [False, True])
def test_looks_together_learn_from_the_mean_of_their_losses(tiny_vit, tmp_path, teacher):
    """Of the labels and of the teacher, which is asked once for all looks."""
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8, freeze_gates_at=0.0)
    trainer.model.set_cascade(LOOKS)
    trainer.args.looks_together, trainer.schedule.full_cost = True, [1.0, 1.0]
    asked = []
    if teacher:
        torch.manual_seed(1)
        trainer.teacher = tiny_vit(num_labels=3).eval()
        trainer.teacher.register_forward_hook(lambda *_: asked.append(None))
    model, inputs = trainer.model.train(), {"pixel_values": images(4), "labels": torch.tensor([0, 1, 2, 0])}
    loss = trainer.compute_loss(model, inputs)
    expected = 0.0
    for look in range(len(LOOKS)):
        out = model(**inputs, look=look, gating="threshold")
        expected = expected + out.loss / len(LOOKS)
        if teacher:
            with torch.no_grad():
                target = trainer.teacher(inputs["pixel_values"]).logits
            expected = expected + distillation_loss(out.logits, target) / len(LOOKS)
    assert_close(loss, expected)
    assert len(asked) == teacher * (1 + len(LOOKS)) and trainer.step_costs[0].shape == (len(LOOKS),)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"looks_together": True, "agent": "random"}, "several times a step"),
        ({"freeze_gates_at": 0.0, "tuning_budgets": [0.5, 0.6]}, "no tuning_budgets"),
        ({"objective": "usage"}, "does not follow"),
        ({"calibration_images": 0}, "needs images that are not trained on"),
        ({"bypass_images": 8}, "models of one look"),
        ({"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"}, "take all of their looks"),
    ],
)
def test_what_does_not_go_with_a_cascade_is_refused(tiny_vit, tmp_path, options, message):
    gates = [{"gate": "merge", "distance": 4.0, "layers": [1]}]
    given = build_trainer(tiny_vit, tmp_path, gates, 0.8)
    given.model.set_cascade(LOOKS)
    args = type(given.args)(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    with pytest.raises(ValueError, match=message):
        type(given)(given.model, args, train_dataset=given.train_dataset, calibration_dataset=given.eval_dataset)


def test_looks_together_need_looks(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="this model has none"):
        build_trainer(tiny_vit, tmp_path, MERGE, 0.8, looks_together=True)


def test_looks_together_are_for_one_process(tiny_vit, tmp_path, monkeypatch):
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8)
    trainer.model.set_cascade(LOOKS)
    trainer.args.looks_together = True
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(ValueError, match="give one process, got 2"):
        check_cascade(trainer)


def test_looks_given_to_the_model_of_a_trainer_are_looked_at_too(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8, freeze_gates_at=0.0, tuning_budgets=[0.8, 0.9])
    trainer.model.set_cascade(LOOKS)
    with pytest.raises(ValueError, match="no tuning_budgets"):
        trainer.train()


@pytest.mark.parametrize("freeze, together", [(0.0, False), (0.5, False), (0.0, True)])
def test_a_training_with_looks_resumes_to_the_bit(tiny_vit, tmp_path, freeze, together):
    def trained(folder, resume):
        options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "freeze_gates_at": freeze}
        trainer = build_trainer(tiny_vit, folder, MERGE, 0.8, calibrate_first=True, save_total_limit=2, **options)
        trainer.model.set_cascade(LOOKS)
        trainer.args.looks_together = together
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    whole = trained(tmp_path, None)
    resumed = trained(tmp_path, str(tmp_path / "checkpoint-4"))
    assert_same(weights(whole), weights(resumed))
    assert whole.config.cascade == resumed.config.cascade
    assert whole.config.budget_confidences == resumed.config.budget_confidences


def test_one_image_that_is_surest_after_two_looks_is_one_image():
    torch.manual_seed(0)
    sure, spent = torch.rand(2, 24).double() * 0.9, torch.tensor([[0.2], [0.3], [0.45]]).double().expand(3, 24)
    sure[:, 3] = 0.95
    table = confidences(sure, spent, 0.5)
    assert table[-1][0] == pytest.approx(0.95)  # all looks of all images
    sure[0, 4:8] = 0.95  # now five of them
    assert confidences(sure, spent, 0.5)[-1][0] < 0.93


def test_a_budget_that_confidences_do_not_reach_in_the_course_of_a_training_stays_the_budget(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, MERGE, 0.8, calibrate_first=True)
    trainer.model.set_cascade(LOOKS)
    with torch.no_grad():
        trainer.model.classifier.weight *= 1e4  # as sure as numbers can say, of all images
    prepare(trainer)
    assert trainer.model.config.budget == 0.8 and trainer.model.config.budget_confidences is None
