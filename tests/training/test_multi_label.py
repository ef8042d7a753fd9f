"""Problems with several labels per image train, are rewarded and measured; regressions are refused before any work."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import images
from trainers import weights, without_labels
from transformers import EvalPrediction

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.data import DataArguments
from hf_dynvit.objectives.policy_gradient import outcome
from hf_dynvit.objectives.task_loss import distillation_loss
from hf_dynvit.report import read, write
from hf_dynvit.report.each_image import each_image
from hf_dynvit.report.markdown import rows, table
from hf_dynvit.report.model_card import write_model_card
from hf_dynvit.report.run_results import collect, evaluate
from hf_dynvit.report.tables import TRAINED
from hf_dynvit.training.metrics import compute_metrics, multi_label_metrics
from hf_dynvit.training.resolution import trial
from hf_dynvit.training.starting_model import ModelArguments


BLOCKS = [{"gate": "block", "layers": [0, 1], "value_width": 8}]


class Labelled(torch.utils.data.Dataset):
    """Seeded noise; a label is there where a channel of the image is brighter than most."""

    def __init__(self, count=32):
        self.pixels = images(count, generator=torch.Generator().manual_seed(0))
        self.labels = (self.pixels.mean((2, 3)) > 0).float()  # (count, 3)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer_of(tiny_vit, folder, gates=BLOCKS, problem_type="multi_label_classification", teacher=None, **options):
    torch.manual_seed(0)
    vit = tiny_vit(num_labels=options.pop("num_labels", 3), problem_type=problem_type)
    model = DynViTForImageClassification.from_vit(vit, gates=gates)
    options = {
        "max_steps": 4,
        "per_device_train_batch_size": 3,  # as many as there are labels
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "calibration_images": 0,
        **options,
    }
    args = DynViTTrainingArguments(str(folder), **options)
    return DynViTTrainer(model, args, teacher, train_dataset=Labelled(), eval_dataset=Labelled())


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "reinforce", "reward": "correct"},
        {"objective": "reinforce", "reward": "probability", "baseline": "self-critical"},
        {"objective": "reinforce", "reward": "correct", "baseline": "none"},
        {"gates": None, "agent": "agentvit-plus", "agent_options": {"learn_every": 1}},
        {"gates": None, "agent": "agentvit-plus", "agent_options": {"learn_every": 1, "reward": "probability"}},
    ],
    ids=str,
)
def test_several_labels_train_and_are_measured(tiny_vit, tmp_path, options, problem_type):
    trainer = trainer_of(tiny_vit, tmp_path, **options, problem_type=problem_type)
    before = weights(trainer.model)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())
    metrics = trainer.evaluate()
    assert {"eval_accuracy", "eval_f1_micro", "eval_mean_average_precision", "eval_cost"} <= metrics.keys()


def test_what_was_found_of_several_labels_is_written_and_shown(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path / "run")
    trainer.train()
    metrics = trainer.evaluate()
    trainer.model.save_pretrained(tmp_path / "vit")
    model_args = ModelArguments(model_name_or_path=str(tmp_path / "vit"), gates=str(BLOCKS))
    (tmp_path / "test.parquet").touch()
    data_args = DataArguments(data_files=[f"validation={tmp_path}/test.parquet"])
    data = SimpleNamespace(train=Labelled(), validation=Labelled(), reported_split="validation")
    results = collect(model_args, data_args, trainer, data, metrics, seconds=1.0)
    write(tmp_path / "results.json", results)
    found = read(tmp_path / "results.json")
    assert found.accuracy_top5 is None and found.images == 32
    names = ("accuracy", "cost", "cost_std", "loss")
    assert {name: getattr(found, name) for name in names} == {name: metrics[f"eval_{name}"] for name in names}
    (row,) = rows(TRAINED, [([found],)])
    assert row["top-1"] == f"{100 * found.accuracy:.2f}" and row["top-5"] is None and "| – |" in table([row])
    card = write_model_card(trainer.model, results.to_json(), tmp_path)
    assert "top-1" in card.text and "top-5" not in card.text
    again = evaluate(trainer.model.eval(), torch.utils.data.DataLoader(Labelled(), 8))
    assert again.scores.accuracy == pytest.approx(found.accuracy) and again.scores.accuracy_top5 is None
    with pytest.raises(ValueError, match=r"one label, got labels of shape \(32, 3\)"):
        each_image(again, Labelled(), trainer.model.config.id2label)


def test_rewards_are_per_image():
    logits = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(outcome(logits, labels, "correct"), torch.tensor([1.0, 1 / 3, 0.0]))
    assert outcome(logits, labels, "blockdrop").tolist() == [1.0, 0.0, 0.0]
    probability = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid()).mean(1)
    torch.testing.assert_close(outcome(logits, labels, "probability"), probability)


def test_metrics_are_the_textbooks():
    logits = np.array([[0.9, -1.0], [0.8, 2.0], [-0.7, -0.5], [0.6, -2.0]])
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    found = multi_label_metrics(logits, labels)
    assert found["accuracy"] == 0.5  # the first and the last
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))  # right, one too many, two missed
    # 0.9 yes, 0.8 no, 0.6 yes, -0.7 yes: 1, 2/3, 3/4; 2.0 yes, -0.5 yes: 1, 1.
    assert found["mean_average_precision"] == pytest.approx(((1 + 2 / 3 + 3 / 4) / 3 + 1) / 2)
    none = multi_label_metrics(-np.ones((2, 3)), np.zeros((2, 3)))
    assert none == {"accuracy": 1.0, "f1_micro": 1.0, "mean_average_precision": 0.0}
    assert compute_metrics(EvalPrediction((logits, np.ones(4)), labels)) == {
        **found,
        "cost": 1.0,
        "cost_std": 0.0,
        "cost_min": 1.0,
        "cost_max": 1.0,
    }


def test_distillation_of_several_labels_is_the_divergence_of_each(tiny_vit, tmp_path):
    logits, teacher = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[2.0, -1.0, 0.0]] * 4),
    )
    two = [torch.stack((z, -z), -1) / 2 for z in (logits, teacher)]  # a softmax over two
    wanted = torch.stack([distillation_loss(two[0][:, c], two[1][:, c]) for c in range(3)]).mean()
    torch.testing.assert_close(distillation_loss(logits, teacher, multi_label=True), wanted)
    assert distillation_loss(teacher, teacher, multi_label=True).abs() < 1e-6
    torch.manual_seed(1)
    given = tiny_vit(num_labels=3)
    trainer = without_labels(
        trainer_of(tiny_vit, tmp_path, gates=None, teacher=given, learning_rate=1e-3, max_steps=60)
    )
    pixels = trainer.train_dataset.pixels

    def distance():
        with torch.no_grad():
            return (trainer.model.eval()(pixels).logits.sigmoid() - given(pixels).logits.sigmoid()).abs().mean()

    before = distance()
    trainer.train()
    assert distance() < 0.5 * before


def test_regressions_are_refused(tiny_vit, tmp_path):
    for options in ({"problem_type": "regression"}, {"problem_type": None, "num_labels": 1}):
        with pytest.raises(ValueError, match="this is a regression"):
            trainer_of(tiny_vit, tmp_path, **options)
    trainer_of(tiny_vit, tmp_path, num_labels=1)


def test_smoothing_of_several_labels_is_refused(tiny_vit, tmp_path):
    with pytest.raises(
        ValueError, match=r"label_smoothing_factor is for one class per image, and the labels are \(3, 3\)"
    ):
        trainer_of(tiny_vit, tmp_path, problem_type=None, label_smoothing_factor=0.1).train()


def test_labels_say_how_the_teacher_is_compared_where_the_problem_type_does_not(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, problem_type=None)
    assert trainer.task_loss.is_multi_label(torch.ones(2, 3))
    assert not trainer.task_loss.is_multi_label(torch.ones(2, dtype=torch.int64))


def test_soft_labels_of_one_class_each_are_no_problem_of_several(tiny_vit, tmp_path):
    soft = torch.tensor([[0.7, 0.3, 0.0]])
    for problem_type, several in (("single_label_classification", False), ("multi_label_classification", True)):
        trainer = trainer_of(tiny_vit, tmp_path, problem_type=problem_type)
        assert trainer.task_loss.is_multi_label(soft) == several
    trainer.model.config.problem_type = None
    assert trainer.task_loss.is_multi_label(soft) and not trainer.task_loss.is_multi_label(torch.tensor([1]))


def test_a_size_of_images_is_compared_label_by_label(tiny_vit):
    model = DynViTForImageClassification.from_vit(
        tiny_vit(num_labels=1, problem_type="multi_label_classification")
    ).eval()
    pixels = images(4)
    with torch.no_grad():
        said = model(pixels).logits
    same, other = (trial(None, model, [wanted], [pixels]).distance for wanted in (said, -said))
    assert same == 0 and other == pytest.approx(distillation_loss(said, -said, True).item()) and other > 1e-4
