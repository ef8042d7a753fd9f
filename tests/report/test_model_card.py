"""Claims about the model card: loadable instructions, measured numbers and nothing that was not measured."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ViTImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure.provenance import measured_on
from hf_dynvit.measure.usage import UsageMeter
from hf_dynvit.report.model_card import layer_ranges, template_path, write_model_card


GATES = [
    {"gate": "patch", "on": "attention", "layers": [1, 2, 3]},
    {"gate": "patch", "on": "mlp", "layers": [0, 1, 2, 3]},
    {"gate": "sublayer", "layers": [1, 2, 3]},
]


@pytest.fixture
def model(tiny_vit):
    return DynViTForImageClassification.from_vit(tiny_vit(num_hidden_layers=4), gates=GATES, budget=0.5)


@pytest.fixture
def results(model):
    meter = UsageMeter()
    meter.update(model(torch.randn(3, 3, 32, 32)).decisions)
    return {
        "dataset": "digits",
        "split": "test",
        "images": 1234,
        "accuracy": 0.8125,
        "accuracy_top5": 0.975,
        "cost": 0.4987,
        "gmacs": 0.321,
        "dense": {"accuracy": 0.8333, "accuracy_top5": 0.9811, "gmacs": 0.643},
        "throughput": [
            {
                "batch_size": 8,
                "dense_images_per_second": 71.7,
                "packed_images_per_second": 133.9,
                "speedup": 1.868,
            }
        ],
        "usage": meter.per_layer(),
        "batch_size": 48,
        **measured_on("cpu", torch.float32, seed=90417),
    }


def numbers(text):
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", text))  # a commit's digits are no numbers


def test_the_metadata_holds_the_measured_accuracy_and_cost(model, results, tmp_path):
    write_model_card(model, results, tmp_path, model_id="me/digits-vit", base_model="you/vit", datasets=["you/digits"])
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert "dynvit" in data.tags
    assert (data.base_model, data.datasets, data.model_name) == ("you/vit", ["you/digits"], "digits-vit")
    measured = [(result.metric_type, result.metric_value, result.dataset_name) for result in data.eval_results]
    assert measured == [
        ("accuracy", results["accuracy"], "digits"),
        ("accuracy", results["accuracy_top5"], "digits"),
        ("cost", results["cost"], "digits"),
    ]
    assert [result.dataset_args for result in data.eval_results] == [{"images": 1234}] * 3  # maybe a part of the split


def test_every_measurement_is_in_the_text_with_its_context(model, results, tmp_path):
    text = write_model_card(model, results, tmp_path).text
    for shown in (
        "81.25 %",
        "97.50 %",
        "83.33 %",
        "98.11 %",
        "0.499",
        "0.321",
        "0.643",
        "71.7",
        "133.9",
        "1.87×",
        "1,234",
    ):
        assert shown in text, shown
    for key in ("device", "dtype", "commit", "command"):
        assert results[key] is None or f"| {key} | " in text
    assert f"1.87× |\n\nOn {results['device']}, float32, CPU threads: {results['threads']}." in text
    assert "| seed | 90417 |" in text
    assert "| batch_size | 48 |" in text
    assert f"torch {torch.__version__}" in text


@pytest.mark.parametrize(
    "missing", ["accuracy", "accuracy_top5", "cost", "gmacs", "dense", "throughput", "usage", "seed"]
)
def test_what_was_not_measured_is_left_out(model, results, tmp_path, missing):
    full = numbers(write_model_card(model, results, tmp_path).text)
    absent = {key: value for key, value in results.items() if key != missing}
    less = write_model_card(model, absent, tmp_path).text
    assert numbers(less) < full
    assert write_model_card(model, {**results, missing: None}, tmp_path).text == less


def test_a_card_without_results_has_no_numbers_but_those_of_the_configuration(model, tmp_path):
    card = write_model_card(model, {}, tmp_path, model_id="m")
    assert card.data.eval_results is None
    assert not re.search("## Results|### Speed|### Usage|### How|## Training|## Licence", card.text)
    config = model.config
    known = {config.num_hidden_layers, config.hidden_size, config.patch_size, config.image_size, config.num_labels}
    known |= {config.budget, 0, 1, config.num_hidden_layers - 1}  # masks are 0 or 1; the layers of the gates
    assert numbers(card.text.replace("[CLS]", "")) <= {str(number) for number in known}


def test_the_card_says_what_each_gate_does_and_where(model, tmp_path):
    text = write_model_card(model, {}, tmp_path).text
    assert "- **patch** on layers 1–3 (`on`: attention): " in text
    assert "- **sublayer** on layers 1–3: " in text


def test_layers_are_written_as_ranges():
    assert layer_ranges([5, 0, 1, 2, 7, 8]) == "layers 0–2, 5, 7–8"


def test_the_code_in_the_card_runs(model, tmp_path):
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    text = write_model_card(model, {}, tmp_path, model_id=str(tmp_path)).text
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    names = {"image": image}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["out"].logits.shape == (1, 5)
    assert names["out"].cost.shape == (1,)


def test_the_card_of_a_model_that_only_resizes_says_what_its_cost_is(tiny_vit, tmp_path):
    looks = [{"budget": 0.6, "resolution": 24}, {"budget": 1.0}]
    for name, options, said in (
        ("looks", {"cascade": looks}, "it looks at an image in one size after another until it is sure"),
        ("smaller", {"resolution": 24}, "it computes everything, of every image made smaller"),
    ):
        model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), **options)
        (tmp_path / name).mkdir()
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
        results = {"accuracy": 0.5, "cost": 0.6, "images": 9, "crop_pct": 0.903}
        text = write_model_card(model, results, tmp_path / name, model_id="me/it").text
        assert said in text and "computes everything for every image" not in text
        assert "Measured on 9 images, the middle 0.903 of each." in text
        assert "*Cost*: multiply-accumulates that were really spent" in text


def test_the_card_of_a_plain_vit_asks_for_nothing_of_ours(tiny_vit, tmp_path):
    vit = tiny_vit()
    vit.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    results = {"accuracy": 0.5, "cost": 1.0, "dataset": "digits"}
    model = DynViTForImageClassification.from_vit(vit)
    text = write_model_card(model, results, tmp_path, model_id=str(tmp_path), plain=True).text
    assert not re.search(r"trust_remote_code|out\.cost|gate|budget", text.replace("without gates", ""))
    names = {"image": Image.fromarray(np.full((50, 40, 3), 7, dtype=np.uint8))}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert type(names["model"]).__name__ == "ViTForImageClassification" and names["out"].logits.shape == (1, 5)


def test_the_base_model_is_the_hub_id_that_the_configuration_remembers_but_never_a_folder(model, tmp_path):
    model.config._name_or_path = "you/vit"
    assert write_model_card(model, {}, tmp_path).data.base_model == "you/vit"
    for folder in (str(tmp_path), "/nowhere/else/vit", ""):
        model.config._name_or_path = folder
        assert write_model_card(model, {}, tmp_path).data.base_model is None


def test_licences_are_stated_only_if_given(model, tmp_path):
    card = write_model_card(model, {}, tmp_path, license="mit", dataset_terms="research only")
    assert card.data.license == "mit"
    assert "- This model: mit." in card.text and "- Data: research only" in card.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accuracy": 70.0}, r"accuracy must be a share in \[0, 1\], got 70.0"),
        ({"accuracy": float("nan")}, "accuracy must be a share"),
        ({"cost": -0.1}, "cost must be positive"),
        ({"dense": {"gmacs": float("inf")}}, "dense gmacs must be positive and finite, got inf"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(model, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_model_card(model, wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_must_be_there(model, tmp_path):
    with pytest.raises(ValueError, match="no picture 'patches.png'"):
        write_model_card(model, {}, tmp_path, pictures={"patches.png": "What survives."})
    (tmp_path / "patches.png").write_bytes(b"")
    assert (
        "![What survives.](patches.png)"
        in write_model_card(model, {}, tmp_path, pictures={"patches.png": "What survives."}).text
    )


def test_the_template_has_a_single_source():
    assert template_path().is_file()


def test_the_card_of_merges_alike_in_every_image_speaks_of_no_threshold(tiny_vit, tmp_path):
    def card(gates, results):
        write_model_card(DynViTForImageClassification.from_vit(tiny_vit(2), gates=gates), results, tmp_path)
        return (tmp_path / "README.md").read_text()

    merges = {"gate": "merge", "distance": 4.0}
    assert "decide by threshold" in card([merges], {}) and "single images cost more or less" in card([merges], {})
    fixed = card([{**merges, "merged": 3}], {"cost_std": 0.0})
    assert "decide by threshold" not in fixed and "single images cost more or less" not in fixed
    assert "decide by threshold" not in card([{"gate": "tome", "merged": 3}], {})


def test_the_card_of_a_cascade_names_the_reach_that_it_has(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(2, num_labels=3), gates=[{"gate": "merge"}])
    model.set_cascade([{"budget": 0.3, "resolution": 24}, {"budget": 0.9}])
    write_model_card(model, {}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "every image gets all looks" in text and "set_budget" not in text
    model.config.budget_confidences = [[0.4, 0.2], [0.8, 0.9]]
    write_model_card(model, {}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Any mean cost from 0.4 to 0.8 can be asked for" in text and "all looks" not in text


def test_of_several_labels_the_metadata_does_not_speak_of_the_first(model, results, tmp_path):
    model.config.problem_type = "multi_label_classification"
    write_model_card(model, results, tmp_path)
    names = [one.metric_name for one in ModelCard.load(tmp_path / "README.md").data.eval_results]
    assert "Share of images of which all labels are right" in names and "Top-1 accuracy" not in names
