"""Claims about recipes and the tables made of them: rows say what decided, choices are made on a part of train."""

import json
import re

import pytest
import torch
import yaml
from places import RECIPES
from recipe_place import compare, report
from transformers import ViTConfig, ViTForImageClassification

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.report.names import decides


RULE = "[{gate: patch, drop: true, merge: true, novelty: 16, layers: [1]}]"


@pytest.fixture(scope="module")
def ruled(place):
    """Results of a training whose gates are frozen from the first step."""
    words = ["--gates", RULE, "--freeze_gates_at", "0.0", "--objective", "cost", "--calibrate_first", "true"]
    return place.train("ruled", *words, "--validation_fraction", "0.3"), place.folder / "ruled"


def test_gates_that_are_frozen_from_the_first_step_are_a_rule_in_rows_and_on_cards(place, ruled):
    results, folder = ruled
    assert results["learned"] == {"patch": 0.0} and decides(results) == "rule: novelty + merge"
    (row,) = report.beside_rows([[report.read(folder / "results.json")]], [])
    assert row["decides"] == "rule: novelty + merge" and row["random, tuned"] == "–"
    assert "Decides: rule: novelty + merge." in (folder / "README.md").read_text()
    assert "(validation = validation.parquet)" in (folder / "README.md").read_text()
    assert results["cost_min"] <= results["cost"] <= results["cost_max"] and results["cost_std"] >= 0
    assert results["split_files"] == [place.files[1].rpartition("/")[2]]


def test_gates_that_are_trained_are_learned_in_rows_and_on_cards(place, trained):
    assert trained["preset"] == "adavit" and max(trained["learned"].values()) > 0
    assert decides(trained).startswith("learned ") or "; learned" in decides(trained)
    assert f"Decides: {decides(trained)}." in (place.folder / "trained" / "README.md").read_text()


def test_agents_are_followed_on_a_part_of_train_and_reported_once_on_validation(place, monkeypatch):
    words = [str(RECIPES / "agentvit_fashion_mnist_cpu.yaml"), "--data_files", *place.files, "--max_steps", "4"]
    words += ["--per_device_train_batch_size", "6", "--evaluations", "2", "--validation_fraction", "0.3"]
    words += ["--new_vit", "{image_size: 28, patch_size: 4, num_channels: 1, hidden_size: 48, num_hidden_layers: 2}"]
    words += ["--disable_tqdm", "true", "--agent_evaluation", "chosen", "--variants", "random"]
    evaluated, evaluate = [], compare.DynViTTrainer.evaluate

    def counted(self, eval_dataset=None, *args, **kwargs):
        evaluated.append(self.eval_dataset if eval_dataset is None else eval_dataset)
        return evaluate(self, eval_dataset, *args, **kwargs)

    monkeypatch.setattr(compare.DynViTTrainer, "evaluate", counted)
    results = compare.main([*words, "--output_dir", str(place.folder / "followed")])
    (run,) = results["runs"]
    sizes = [len(dataset) for dataset in evaluated]
    assert sizes == [results["curve_images"]] * 2 + [results["images"]]
    assert results["curve_images"] != results["images"] and results["curves_on"] == "held out of train"
    assert [point["step"] for point in run["curve"]] == [2, 4]
    correct = run["accuracy"] * results["images"], run["chosen"]["accuracy"] * results["images"]
    assert correct == pytest.approx([round(number) for number in correct])
    text = (place.folder / "followed" / "compare.md").read_text()
    assert f"curves on {results['curve_images']} (held out of train)" in text
    assert json.loads((place.folder / "followed" / "compare.json").read_text())["curves_on"] == "held out of train"


def test_every_cpu_recipe_of_agents_holds_out_a_part_of_train():
    recipes = list(RECIPES.glob("agentvit_*_cpu.yaml"))
    texts = [recipe.read_text() for recipe in recipes]
    assert len(texts) == 3 and all("\nvalidation_fraction: 0." in text for text in texts)


def test_the_recipes_say_how_to_run_what_was_promised():
    promised = {"adavit_tiny_imagenet_cpu": "adavit-official", "layerskip_cifar10_cpu": "layerskip-dynavit"}
    promised |= {"agentvit_fashion_mnist_cpu": "agentvit-dqn", "agentvit_cifar10_cpu": "agentvit-dqn"}
    for recipe, name in promised.items():
        header = (RECIPES / f"{recipe}.yaml").read_text().partition("\n\n")[0]
        assert name in header, (recipe, name)


def test_random_tokens_cost_half_of_a_vit_tiny_with_and_without_merging():
    header = (RECIPES / "adavit_tiny_imagenet_cpu.yaml").read_text()
    found = re.findall(r"'(\[{gate: random.*?}\])'", header)
    assert len(found) == 2
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=200)
    vit = ViTForImageClassification(config).eval()
    for gates in map(yaml.safe_load, found):
        model = DynViTForImageClassification.from_vit(vit, gates=gates).eval()
        with torch.inference_mode():
            assert model(torch.randn(48, 3, 224, 224)).cost.mean().item() == pytest.approx(0.5, abs=0.012)
