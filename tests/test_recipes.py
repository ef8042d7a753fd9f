"""Recipes: one command trains, measures and reports; the command line wins; mistakes are named before any work."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from image_files import NAMES, save_checkpoint, write_folders, write_parquet
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.gate import Score
from hf_dynvit.model_source import ModelArguments
from hf_dynvit.reach import cost_range
from hf_dynvit.report_tables import command
from hf_dynvit.settings import parse_settings


ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"


def script(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES_OF_SCRIPTS = (
    "train",
    "evaluate",
    "report",
    "calibrate",
    "search",
    "step_time",
    "compare_agents",
    "merge_comparisons",
)
train, evaluate, report, dial, search, step_time, compare, merge = map(script, NAMES_OF_SCRIPTS)
START, END = report.markers("results")


class Place:
    """A folder with made-up data, a tiny checkpoint and a recipe for them."""

    def __init__(self, folder):
        self.folder = folder
        self.files = write_parquet(folder, grey=[2])
        config = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_labels": 3}
        vit = ViTForImageClassification(ViTConfig(num_hidden_layers=2, num_attention_heads=4, **config))
        self.vit = save_checkpoint(folder / "vit", vit)
        deep = ViTForImageClassification(ViTConfig(num_hidden_layers=12, num_attention_heads=4, **config))
        self.deep_vit = save_checkpoint(folder / "deep_vit", deep)
        self.recipe = folder / "recipe.yaml"
        settings = {
            "model_name_or_path": self.vit,
            "data_files": self.files,
            "budget": 0.7,
            "max_steps": 4,
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 6,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "calibration_images": 6,
            "seed": 1,
        }
        self.recipe.write_text(yaml.safe_dump(settings))

    def train(self, name, *words):
        return train.main([str(self.recipe), "--output_dir", str(self.folder / name), *words])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    set_seed(0)
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("recipes")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    yield Place(folder)
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def trained(place):
    return place.train("trained", "--gate_learning_rate=0.02")


def test_a_run_leaves_model_card_pictures_and_results(place, trained):
    folder = place.folder / "trained"
    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(trained))
    assert results["images"] == 12 and results["images_seen"] == 24 and results["steps"] == 4
    assert results["processes"] == 1 and results["batch_size"] == 6 and results["seed"] == 1
    assert 0 < results["cost"] < 1 and results["gmacs"] == pytest.approx(results["cost"] * results["gmacs_dense"])
    assert results["dense"]["cost"] == 1.0 and 0 <= results["dense"]["accuracy"] <= 1
    assert set(results["usage"]) == {"attention_tokens", "mlp_tokens", "attention", "mlp"}
    assert results["settings"]["training"]["gate_learning_rate"] == 0.02
    assert {"decisions.png", "usage.png", "README.md", "preprocessor_config.json", "modeling_dynvit.py"} <= set(
        os.listdir(folder)
    )
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.budget == 0.7 and list(model.config.id2label.values()) == NAMES
    assert model.config.gates[0]["gate"] == "patch"


def test_evaluate_measures_what_training_reported_and_report_writes_the_tables(place, trained, tmp_path):
    words = [
        "--model",
        str(place.folder / "trained"),
        "--dense",
        place.vit,
        "--data_files",
        f"{place.folder}/validation.parquet",
    ]
    out = tmp_path / "evaluation.json"
    results = evaluate.main(
        [
            *words,
            "--json",
            str(out),
            "--batch_sizes",
            "1",
            "4",
            "--rounds",
            "2",
            "--no-compile",
            "--eval_batch_size",
            "6",
        ]
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(results))
    for name in ("accuracy", "accuracy_top5", "cost", "gmacs"):
        assert results[name] == pytest.approx(trained[name], abs=1e-6)
    assert results["dense"]["accuracy"] == pytest.approx(trained["dense"]["accuracy"])
    assert [row["batch_size"] for row in results["throughput"]] == [1, 4]
    for row in results["throughput"]:
        assert set(row["dense_ms"]) == {"eager", "sdpa"}
        assert row["dense_images_per_second"] == pytest.approx(1e3 * row["batch_size"] / min(row["dense_ms"].values()))
        assert row["speedup"] == pytest.approx(row["packed_images_per_second"] / row["dense_images_per_second"])

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    front = tmp_path / "FRONT.md"
    front.write_text("title\n" + "old".join(report.markers("front")))
    words = ["--readme", str(readme), "--front", str(front)]
    report.main([*words, str(place.folder / "trained" / "results.json"), str(out)])
    gains = ", ".join(f"{row['speedup']:.2f}× ({row['batch_size']})" for row in results["throughput"])
    assert "old" not in front.read_text() and gains in front.read_text()
    assert f"| {100 * results['dense']['accuracy']:.2f} | {100 * results['accuracy']:.2f} |" in front.read_text()
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count(f"| {100 * results['accuracy']:.2f} |") >= 2 and f"{results['cost']:.3f}" in text
    for row in results["throughput"]:
        assert f"| {row['packed_images_per_second']:.1f} |" in text
    assert str(place.folder) not in text
    again = report.main(["--readme", str(readme), str(out)])
    assert "### Trained" not in again and readme.read_text().count(START) == 1


def test_evaluate_refuses_before_it_works(place, trained, tmp_path):
    words = ["--model", str(place.folder / "trained"), "--data_files", f"{place.folder}/validation.parquet"]
    with pytest.raises(ValueError, match="batch of 64 needs as many images, there are 12"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--batch_sizes", "64"])
    with pytest.raises(FileNotFoundError, match="no folder for"):
        evaluate.main([*words, "--json", str(tmp_path / "absent" / "a.json")])
    with pytest.raises(ValueError, match="dtype must be one of"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--dtype", "int8"])
    with pytest.raises(ValueError, match="written neither by train.py nor evaluate.py"):
        (tmp_path / "other.json").write_text("{}")
        report.main([str(tmp_path / "other.json")])


def test_the_published_table_shows_no_folders_of_this_machine():
    line = (
        "python recipes/train.py a.yaml --model_name_or_path=/home/me/data/vit --data_files train=../../x/d/t.parquet"
    )
    expected = "python recipes/train.py a.yaml --model_name_or_path=data/vit --data_files train=d/t.parquet"
    assert command(line) == expected


def test_the_command_line_wins_over_the_file(place, tmp_path):
    types = (ModelArguments, train.DataArguments, train.DynViTTrainingArguments)
    words = [
        str(place.recipe),
        "--budget",
        "0.9",
        "--learning_rate=2e-4",
        "--output_dir",
        str(tmp_path),
        "--bf16",
        "true",
    ]
    model, data, training = parse_settings([*words, "--gates", '[{"gate": "patch", "on": "mlp"}]'], *types)
    assert (model.budget, training.learning_rate, training.bf16, training.seed) == (0.9, 2e-4, True, 1)
    assert model.gate_list() == [{"gate": "patch", "on": "mlp"}]
    assert data.data_files == place.files
    nested = tmp_path / "nested.yaml"
    nested.write_text("gates:\n- {gate: sublayer, layers: [1]}\nmodel_name_or_path: x\ndata_files: [a.parquet]\n")
    model, _, _ = parse_settings([str(nested), "--output_dir", str(tmp_path)], *types)
    assert model.gate_list() == [{"gate": "sublayer", "layers": [1]}]


def test_an_unknown_key_is_named(place, tmp_path):
    with pytest.raises(ValueError, match="unknown key 'gate_learnin_rate' in the command line; did you mean gate_lea"):
        place.train("unknown", "--gate_learnin_rate", "1")
    bad = tmp_path / "bad.yaml"
    bad.write_text("budgett: 0.5\n")
    with pytest.raises(ValueError, match="unknown key 'budgett' in .*bad.yaml; did you mean budget?"):
        train.main([str(bad)])
    with pytest.raises(ValueError, match="'0.5' belongs to no key"):
        place.train("unknown", "--bf16", "true", "0.5")
    with pytest.raises(FileNotFoundError, match="no settings file 'absent.yaml'"):
        train.main(["absent.yaml"])
    assert not (place.folder / "unknown").exists()


def test_what_cannot_work_is_refused_before_training(place):
    for words, message in [
        (["--budget", "1.5"], "budget must be in \\(0, 1\\]"),
        (["--gates", "adavitt"], "unknown preset 'adavitt'"),
        (["--gates", "[{gate: path}]"], "unknown gate 'path'"),
        (["--new_classifier", "true"], "cannot teach new classes"),
        (["--num_processes", "2"], "for 2 processes, 1 were launched"),
        (["--model_name_or_path", ""], "model_name_or_path is missing"),
        (["--model_name_or_path", "absent"], "model_name_or_path 'absent' cannot be loaded"),
        (["--label_column", "class"], "no column 'class'"),
        (["--max_steps", "many"], "argument --max_steps.*invalid int value: 'many'"),
        (["--teacher", "absent"], "teacher 'absent' cannot be loaded"),
        (["--dataloader_drop_last", "true"], "would also drop images of the evaluation"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            place.train("refused", *words)
    assert not (place.folder / "refused" / "model.safetensors").exists()


def test_a_folder_that_holds_a_run_is_refused(place, trained):
    before = (place.folder / "trained" / "results.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run \\(finished\\).*--resume_from_checkpoint true"):
        place.train("trained")
    assert (place.folder / "trained" / "results.json").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        place.train("new", "--resume_from_checkpoint", "true")


def test_a_resumed_run_ends_with_the_same_weights(place):
    # Four batches an epoch: the checkpoint lies inside the second one, and the augmentation must go on as it would have.
    words = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "6", "--evaluate_dense", "false"]
    straight = place.train("straight", *words)
    with pytest.raises(ValueError, match="already holds a run \\(checkpoint-8\\)"):
        place.train("straight", *words)
    checkpoint = place.folder / "straight" / "checkpoint-6"
    resumed = place.train("resumed", *words, "--resume_from_checkpoint", str(checkpoint))
    assert resumed["resumed"] and not straight["resumed"] and resumed["steps"] == 8
    weights = [load_file(place.folder / name / "model.safetensors") for name in ("straight", "resumed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] | weights[1])


def test_without_gates_the_dense_model_is_tuned_by_the_same_recipe(place):
    results = place.train("dense", "--gates", "none", "--max_steps", "2")
    assert results["cost"] == 1.0 and results["usage"] == {}
    folder = place.folder / "dense"
    assert not (folder / "decisions.png").exists() and (folder / "README.md").exists()
    tuned, given = (load_file(f / "model.safetensors") for f in (folder, Path(place.vit)))
    assert any(not torch.equal(tuned[key], given[key]) for key in given)
    assert not list(folder.glob("*.py")) and "trust_remote_code" not in (folder / "README.md").read_text()
    ViTForImageClassification.from_pretrained(folder)


def test_new_classes_come_from_the_data(place):
    write_folders(place.folder / "images")
    results = train.main(
        [str(place.recipe), "--output_dir", str(place.folder / "new_classes"), "--max_steps", "1", "--gates", "none"]
        + ["--dataset_name", "imagefolder", "--data_dir", str(place.folder / "images"), "--teacher", "none"]
        + ["--data_files", "none", "--new_classifier", "true"]
    )
    assert results["dataset"] == "images" and "dense" not in results
    config = json.loads((place.folder / "new_classes" / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_runs_two_steps_on_made_up_data(place, recipe):
    content = yaml.safe_load(recipe.read_text())
    assert not [key for key, value in content.items() if isinstance(value, str) and value[:1].isdigit()]  # 1e-4
    text = recipe.read_text()
    for word in ("# Command", "# Hardware", "# Minutes", "# Expect"):
        assert word in text
    words = [str(recipe), "--output_dir", str(place.folder / recipe.stem)]
    words += [] if "new_vit" in content else ["--model_name_or_path", place.deep_vit]
    words += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--disable_tqdm", "true"]
    words += ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--num_processes", "1"]
    words += ["--validation_fraction", "0.25"] if "validation_fraction" in content else []
    if "dataset_name" in content:
        # The Hub's name is replaced by a folder; everything else is the recipe's.
        write_folders(place.folder / "hub")
        words += ["--dataset_name", "imagefolder", "--data_dir", str(place.folder / "hub")]
        words += ["--trust_label_order", "true"]
    else:
        words += ["--data_files", *place.files]
    results = train.main(words)
    assert results["steps"] == 2 and results["cost"] < 1.01
    assert results["settings"]["training"]["learning_rate"] == content["learning_rate"]


def test_what_is_pushed_has_no_checkpoints_or_arguments(place, trained, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    from hf_dynvit import publish

    pushed = {}

    def upload_folder(repo_id, folder_path, ignore_patterns, commit_message):
        files = [str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()]
        pushed[repo_id] = set(filter_repo_objects(files, ignore_patterns=ignore_patterns))

    class Repo:
        repo_id = "me/model"

    monkeypatch.setattr(publish, "create_repo", lambda *args, **kwargs: Repo)
    monkeypatch.setattr(publish, "upload_folder", upload_folder)
    publish.push(place.folder / "trained", "me/model")
    assert {"config.json", "model.safetensors", "README.md", "decisions.png", "gates.py"} <= pushed["me/model"]
    assert not {"training_args.bin", "results.json"} & pushed["me/model"]


def test_a_script_beside_evaluate_py_still_finds_the_library_of_that_name():
    code = f"import runpy; runpy.run_path({str(RECIPES / 'train.py')!r}); import evaluate; print(evaluate.Metric)"
    environment = {**os.environ, "PYTHONPATH": f"{RECIPES}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "evaluate.module.Metric" in done.stdout, done.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(place):
    out = place.folder / "two"
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(RECIPES / "accelerate" / "cpu_2_processes.yaml"),
    ]
    words = [str(RECIPES / "train.py"), str(place.recipe), "--output_dir", str(out), "--num_processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(place.folder / "cache")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, *launch, *words, "--max_steps", "2", "--per_device_train_batch_size", "3"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert results["processes"] == 2 and results["batch_size"] == 6 and results["images_seen"] == 12
    assert results["images"] == 12


def test_the_dial_turns_without_training(place, tmp_path):
    model = DynViTForImageClassification.from_vit(place.vit, gates=[{"gate": "patch"}], budget=0.9)
    for module in model.modules():
        if isinstance(module, Score):
            torch.nn.init.normal_(module.weight)
    model.save_pretrained(tmp_path / "trained")
    AutoImageProcessor.from_pretrained(place.vit).save_pretrained(tmp_path / "trained")
    words = ["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "turned"), "--data_files", *place.files]
    _, cost = dial.main([*words, "--budget", "0.6"])
    assert cost == pytest.approx(0.6, abs=0.05)
    turned = DynViTForImageClassification.from_pretrained(tmp_path / "turned")
    assert turned.config.budget == 0.6
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, turned.state_dict()[name]) != name.endswith("score.bias")
    with pytest.raises(ValueError, match="is not empty"):
        dial.main([*words, "--budget", "0.6"])
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got 1.5"):
        dial.main([*words, "--budget", "1.5"])


def test_the_report_takes_the_benchmark_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before {START} old {END} after")
    row = {"size": "tiny", "dtype": "float32", "batch": 8, "gates": "patch", "cost": 0.5, "rounds": 9}
    row |= {
        "prepacked": True,
        "dense_ms": {"eager": 30.0, "sdpa": 20.0},
        "packed_ms": 12.5,
        "speedup": 1.6,
        "realised": 0.8,
    }
    row |= {"peak_mib": {"eager": 40.0, "sdpa": 30.25, "patch": 20.0}}
    made = {"device": "A CPU", "threads": 2, "seed": 0, "commit": "abc", "command": "python benchmark", "rows": [row]}
    (tmp_path / "speed.json").write_text(json.dumps(made))
    report.main(["--readme", str(readme), str(tmp_path / "speed.json")])
    assert (
        "| tiny | float32 | 8 | patch | 0.500 | 20.0 (sdpa) | 12.5 | yes | 1.60× | 0.80 | 30.2, 20.0 | 9 |"
        in readme.read_text()
    )
    assert "A CPU, 2 threads, seed 0, commit abc, command [1]:" in readme.read_text()
    assert "1. `python benchmark`" in readme.read_text() and " old " not in readme.read_text()
    (tmp_path / "other.json").write_text(json.dumps({"rows": [{"accuracy": 1}]}))
    with pytest.raises(ValueError, match="was written neither"):
        report.main(["--readme", str(readme), str(tmp_path / "other.json")])


POLICY = "[{gate: block, value_width: 8, layers: [0, 1]}]"


@pytest.fixture(scope="module")
def skipping(place):
    words = ["--gates", POLICY, "--objective", "reinforce", "--budget", "0.8"]
    return place.train("skipping", *words), place.folder / "skipping"


def test_the_preset_of_the_gates_says_how_they_are_taught(place):
    results = place.train("preset", "--gates", "layerskip", "--price_gain", "0.25", "--max_steps", "2")
    training = results["settings"]["training"]
    assert (training["objective"], training["price_gain"]) == ("reinforce", 0.25)


def test_a_model_with_gates_trains_on(place, skipping):
    words = ["--model_name_or_path", str(skipping[1])]
    results = place.train("trained_on", *words, "--gates", "keep", "--objective", "reinforce", "--train_body", "false")
    one, other = (load_file(folder / "model.safetensors") for folder in (skipping[1], place.folder / "trained_on"))
    assert one.keys() == other.keys() and results["steps"] == 4
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed and all(name.startswith("gates.") for name in changed)
    with pytest.raises(ValueError, match="gates 'keep' is for models with gates"):
        place.train("not_kept", *words, "--gates", "layerskip")


def test_the_policy_is_tuned_under_the_mask_that_the_joint_search_picked(place, tmp_path):
    words = ["--model_name_or_path", place.deep_vit, "--max_steps", "2"]
    place.train("joint", *words, "--gates", "layerskip", "--gate_learning_rate", "0.1")
    words = ["--objectives", "reward+layers", "--method", "nsga2", "--population", "4", "--generations", "2"]
    found = find(place, tmp_path, place.folder / "joint", *words, "--max_cost", "0.6", "--always_keep", "0")
    picked, mask = tmp_path / "picked", found["picked"]["layer_mask"]
    assert 1 <= sum(map(all, mask)) < 12

    # A fresh policy may start from that mask, instead of open.
    words = ["--model_name_or_path", place.deep_vit, "--gates", "layerskip", "--max_steps", "2"]
    cost = round(found["picked"]["cost"] + 0.02, 3)
    results = place.train("started", *words, "--start_mask", str(picked), "--budget", str(cost))
    training = results["settings"]["training"]
    assert (training["budget_ramp"], training["curriculum"]) == (0.0, 0.0) and results["cost"] < 0.9
    with pytest.raises(ValueError, match="start_mask.*joint.*has no layer_mask"):
        place.train("no_mask", *words, "--start_mask", str(place.folder / "joint"))
    with pytest.raises(ValueError, match="start_mask is where fresh gates start.*'none'"):
        place.train("no_gates", "--gates", "none", "--start_mask", str(picked))

    # A recipe written for the body's training too: packed tuning at its end, and a teacher.
    words = [
        "--model_name_or_path",
        str(picked),
        "--gates",
        "keep",
        "--train_body",
        "false",
        "--freeze_gates_at",
        "0.5",
    ]
    low, high = cost_range(DynViTForImageClassification.from_pretrained(picked))
    budget = round((low + high) / 2, 3)
    results = place.train("tuned", *words, "--budget", str(budget), "--max_steps", "4")
    training = results["settings"]["training"]
    assert (training["objective"], training["budget_ramp"], training["curriculum"]) == ("reinforce", 0.0, 0.0)
    assert results["steps"] == 4 and results["layer_mask"] == mask and results["cost"] <= high + 1e-6
    assert results["checkpoint"]["cost"] <= high + 1e-6 and "dense" not in results
    tuned = AutoModelForImageClassification.from_pretrained(place.folder / "tuned")
    assert tuned.config.layer_mask == mask and tuned.config.budget == budget
    one, other = (load_file(folder / "model.safetensors") for folder in (picked, place.folder / "tuned"))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert one.keys() == other.keys() and all(name.startswith("gates.") for name in changed)
    learned = {int(name.split(".")[1]) for name in changed if name.endswith("score.weight")}
    assert learned == {layer for layer in range(1, 12) if all(mask[layer])}

    with pytest.raises(ValueError, match=r"budget of 0.7 is out of reach: its gates under its layer_mask"):
        place.train("too_dear", *words)
    assert not (place.folder / "too_dear" / "model.safetensors").exists()


def test_gates_that_are_kept_keep_their_budget(place, skipping):
    recipe = yaml.safe_load(place.recipe.read_text())
    del recipe["budget"]
    (place.folder / "no_budget.yaml").write_text(yaml.safe_dump(recipe))
    words = [str(place.folder / "no_budget.yaml"), "--output_dir", str(place.folder / "no_budget"), "--max_steps", "1"]
    results = train.main([*words, "--model_name_or_path", str(skipping[1]), "--gates", "keep"])
    assert results["settings"]["model"]["budget"] == 0.8
    assert ModelArguments(model_name_or_path="vit").budget == 0.5


def test_a_vit_trained_from_scratch_is_a_plain_one(place):
    shape = "{image_size: 32, patch_size: 8, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}"
    words = ["--model_name_or_path=", "--new_vit", shape, "--gates", "none"]
    results = place.train("scratch", *words)
    folder = place.folder / "scratch"
    vit, info = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not list(folder.glob("*.py"))
    assert list(vit.config.id2label.values()) == NAMES and results["cost"] == 1.0
    again = evaluate.main(
        [
            "--model",
            str(folder),
            "--data_files",
            f"{place.folder}/validation.parquet",
            "--batch_sizes",
            "0",
            "--json",
            str(place.folder / "scratch.json"),
        ]
    )
    assert again["accuracy"] == pytest.approx(results["accuracy"])
    with pytest.raises(ValueError, match="trains a dense ViT from scratch"):
        place.train("both", "--new_vit", shape)


def find(place, folder, model, *words):
    return search.main(
        [
            "--model",
            str(model),
            "--output",
            str(folder),
            "--data_files",
            f"train={place.folder}/train.parquet",
            "--validation_fraction",
            "0.5",
            "--images",
            "6",
            "--always_keep",
            "-1",
            *words,
        ]
    )


def test_a_search_writes_front_picture_and_models(place, skipping, tmp_path):
    results = find(place, tmp_path, skipping[1], "--burn_in", "true", "--granularity", "sublayer")
    assert results["method"] == "exhaustive" and results["masks_scored"] == 15
    assert json.loads((tmp_path / "front.json").read_text()) == json.loads(json.dumps(results))
    rows = (tmp_path / "front.csv").read_text().splitlines()
    assert len(rows) == 1 + len(results["front"]) and rows[0].startswith("bits,accuracy,error,cost")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    picked = AutoModelForImageClassification.from_pretrained(tmp_path / "picked")
    assert picked.config.layer_mask == results["picked"]["layer_mask"]
    AutoModelForImageClassification.from_pretrained(tmp_path / "burnt_in")
    again = find(place, tmp_path, skipping[1], "--granularity", "sublayer", "--method", "nsga2", "--generations", "2")
    assert again["method"] == "nsga2" and again["masks_scored"] == 15  # all of them from scores.json


def test_the_joint_search_scores_the_reward_of_the_policy(place, skipping, tmp_path):
    results = find(place, tmp_path, skipping[1], "--objectives", "reward+layers", "--price", "0.3")
    for point in results["front"]:
        assert point["reward"] == pytest.approx(point["accuracy"] - 0.3 * point["cost"], abs=1e-5)


def test_a_plain_vit_can_be_searched_and_burnt_in(place, tmp_path):
    find(place, tmp_path, place.vit, "--burn_in", "true", "--min_accuracy", "0")
    assert len(ViTForImageClassification.from_pretrained(tmp_path / "burnt_in").vit.layers) == 1


def test_a_searched_mask_outlives_the_tuning_of_a_model_without_gates(place, tmp_path):
    found = find(place, tmp_path, place.vit, "--min_accuracy", "0")["picked"]
    words = ["--model_name_or_path", str(tmp_path / "picked"), "--gates", "keep", "--max_steps", "1"]
    results = place.train("tuned_mask", *words, "--teacher", "none", "--evaluate_dense", "false")
    assert results["layer_mask"] == found["layer_mask"] and results["gates"] is None and results["cost"] < 1.0
    tuned = DynViTForImageClassification.from_pretrained(place.folder / "tuned_mask")
    assert tuned.config.layer_mask == found["layer_mask"]
    assert "trust_remote_code" in (place.folder / "tuned_mask" / "README.md").read_text()


def test_a_static_mask_of_a_cost_is_picked_from_a_gated_model_and_evaluated(place, skipping, tmp_path):
    words = ["--policy", "process", "--granularity", "sublayer", "--max_cost", "0.7", "--method", "nsga2"]
    results = find(place, tmp_path, skipping[1], *words, "--population", "4", "--generations", "2")
    picked = results["picked"]
    cheap = [point for point in results["front"] if point["cost"] <= 0.7]
    assert picked["accuracy"] == max(point["accuracy"] for point in cheap) and picked in cheap
    words = ["--model", str(tmp_path / "picked"), "--data_files", f"{place.folder}/validation.parquet"]
    words += ["--batch_sizes", "4", "--rounds", "1", "--no-compile", "--json", str(tmp_path / "evaluation.json")]
    measured = evaluate.main(words)
    assert measured["gates"] is None and measured["layer_mask"] == picked["layer_mask"]
    assert measured["num_layers"] == 2
    assert measured["cost"] == pytest.approx(picked["cost"], abs=1e-6) and measured["images"] == 12

    # The same by hand: the backbone of the gated model, every gate open, under the mask.
    model = DynViTForImageClassification.from_pretrained(skipping[1]).eval()
    model.config.layer_mask = picked["layer_mask"]
    rows = evaluate.open_models([str(skipping[1])], evaluate.DataArguments(data_files=words[3:4]))[0].images
    with torch.no_grad():
        guesses = [model(row["pixel_values"][None], gating="open").logits.argmax().item() for row in rows]
    right = [guess == row["labels"] for guess, row in zip(guesses, rows, strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_cost_that_no_mask_has_is_refused_before_the_search(place, skipping, tmp_path):
    with pytest.raises(ValueError, match=r"no mask has a cost of at most 0.01; the cheapest has 0\.\d+"):
        find(place, tmp_path / "out", skipping[1], "--policy", "process", "--max_cost", "0.01")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min_accuracy", "0.5", "--max_cost", "0.5"], "min_accuracy or max_cost, not both: got 0.5 and 0.5"),
        (["--objectives", "reward+layers"], "need a model with gates that act"),
        (["--policy", "dream"], "policy must be one of"),
        (["--always_keep", "0", "1"], "nothing to search"),
        (["--validation_fraction", "0"], "no mask is chosen on validation"),
        (["--images", "1"], "images must be at least 2"),
    ],
)
def test_bad_searches_are_refused_before_work(place, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        find(place, tmp_path / "out", place.vit, *words)
    assert not (tmp_path / "out").exists()


def published_rows(folder, file):
    """Lines of the tables that report.py makes of one file, headers apart."""
    readme = folder / "README.md"
    readme.write_text(f"{START}{END}")
    report.main(["--readme", str(readme), str(file)])
    assert "### Training steps" in readme.read_text()
    return [line for line in readme.read_text().splitlines() if line.startswith("| ")][2:]


def test_steps_are_timed_and_reported(place, tmp_path):
    words = ["--model", place.deep_vit, "--batch_size", "4", "--seconds", "0.1", "--draws", "2", "--agents", "center"]
    results = step_time.main([*words, "--json", str(tmp_path / "step.json")])
    assert results["cost"] == pytest.approx(0.5, abs=0.1)
    assert results["time_ratio"] == results["packed_ms"] / min(results["dense_ms"].values())
    assert 0 < results["memory_ratio"] < 1
    gates, center = published_rows(tmp_path, tmp_path / "step.json")
    assert "| block | all | 0." in gates and f"| {results['time_ratio']:.2f} |" in gates
    assert "| center | 8.0 of 16 | 0." in center and f"| {results['agents'][0]['time_ratio']:.2f} |" in center


def test_steps_with_agents_are_timed_as_often_as_they_learn(place, tmp_path):
    agents = ["agentvit:hidden=8,hidden2=8", "agentvit-plus:learn_every=2", "random"]
    words = ["--model", place.vit, "--batch_size", "4", "--seconds", "0.1", "--gates", "none"]
    out = tmp_path / "step.json"
    results = step_time.main([*words, "--json", str(out), "--agents", *agents, "--n_patch_desired", "6"])
    assert [row["agent"] for row in results["agents"]] == agents and "packed_ms" not in results
    for row in results["agents"]:
        assert row["time_ratio"] == row["ms"] / min(results["dense_ms"].values())
        assert row["ms"] == min(times["mean"] for times in row["step_ms"].values())
        assert 0 < row["cost"] < 1 and row["n_patch_desired"] == 6
        assert 0 < row["memory_ratio"] < (1 if row["agent"] == "random" else 2)  # the others' own, beside a tiny ViT
    assert [row["learn_every"] for row in results["agents"]] == [50, 2, 1]
    assert [row["kept"] for row in results["agents"]][1:] == [6.0, 6.0]
    assert len(published_rows(tmp_path, out)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gates", "none"], "give gates or agents"),
        (["--agents", "none"], "'none' is no agent"),
        (["--agents", "random", "agentvit:gama=1"], "agent 'agentvit' has no option 'gama'"),
        (["--agents", "random", "--n_patch_desired", "17"], r"n_patch_desired must be in 1..16"),
    ],
)
def test_steps_that_cannot_be_timed_are_refused(place, words, message):
    with pytest.raises(ValueError, match=message):
        step_time.main(["--model", place.deep_vit, *words])


@pytest.fixture(scope="module")
def comparing(place):
    """Words of a small comparison."""
    words = [str(RECIPES / "agentvit_fashion_mnist_cpu.yaml"), "--data_files", *place.files, "--max_steps", "4"]
    words += ["--per_device_train_batch_size", "6", "--n_patch_desired", "20", "--evaluations", "2"]
    words += ["--new_vit", "{image_size: 28, patch_size: 4, num_channels: 1, hidden_size: 48, num_hidden_layers: 2}"]
    words += ["--logging_steps", "1", "--disable_tqdm", "true", "--agent_evaluation", "chosen", "--seeds"]
    return words


VARIANTS = ["none", "agentvit", "random:return_fraction=0.5", "random:n_patch_desired=30", "none:max_steps=2"]


@pytest.fixture(scope="module")
def compared(place, comparing):
    folder = place.folder / "compared"
    return compare.main([*comparing, "0", "1", "--output_dir", str(folder), "--variants", *VARIANTS]), folder


def test_agents_are_compared_on_the_same_data_and_steps(compared):
    results, folder = compared
    written = json.loads((folder / "compare.json").read_text())
    assert set(written.pop("summary")) == set(VARIANTS) and written == json.loads(json.dumps(results))
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [(v, s) for s in (0, 1) for v in VARIANTS]
    for run in results["runs"]:
        shorter = run["variant"] == "none:max_steps=2"
        assert [point["step"] for point in run["curve"]] == ([1, 2] if shorter else [2, 4])
        assert 0 < run["curve"][0]["seconds"] < run["curve"][1]["seconds"] <= run["train_seconds"]
        dense = run["variant"].startswith("none")
        assert (run["kept_share"] == 1.0) == dense and (run["chosen"] is None) == dense
        assert dense or 0 < run["chosen"]["cost"] < 0.9
    assert {round(49 * run["kept_share"], 6) for run in results["runs"] if run["variant"] == VARIANTS[3]} == {30}
    memory = {run["variant"]: run["step_mib"] for run in results["runs"]}
    returning = memory["random:return_fraction=0.5"]
    assert 0 < returning["first"] < 0.8 * memory["none"]["first"]  # 20 of 49 patches
    assert returning["first"] < returning["last"] < 1.02 * memory["none"]["last"]
    text = (folder / "compare.md").read_text()
    assert all(f"| {variant} | 2 |" in text for variant in VARIANTS)
    assert {"compare.png", "agentvit_0", "agentvit_1"} <= set(os.listdir(folder))
    assert {"keep_map.png", "agent_patches.png"} <= set(os.listdir(folder / "agentvit_0"))


def test_an_interrupted_comparison_goes_on_and_loses_nothing(place, comparing, monkeypatch):
    folder, trained, run = place.folder / "interrupted", [], compare.run

    def interrupted(model_args, args, data):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append((args.agent, args.seed))
        return run(model_args, args, data)

    words = [*comparing, "0", "--output_dir", str(folder), "--variants", "none", "random"]
    monkeypatch.setattr(compare, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare.main(words)
    (kept,) = json.loads((folder / "compare.json").read_text())["runs"]
    monkeypatch.setattr(compare, "run", lambda *args: trained.append((args[1].agent, args[1].seed)) or run(*args))
    results = compare.main(words)
    assert trained == [("none", 0), ("random", 0)] and results["runs"][0] == kept and len(results["runs"]) == 2
    assert compare.main(words)["runs"] == results["runs"] and len(trained) == 2
    with pytest.raises(ValueError, match="compare.json and this comparison .* training.n_patch_desired is 20 and 19"):
        compare.main([*words, "--n_patch_desired", "19"])


def test_an_agent_that_does_not_fit_is_refused_before_the_first_variant_trains(place, comparing, monkeypatch):
    monkeypatch.setattr(compare, "run", None)
    words = [*comparing, "0", "--output_dir", str(place.folder / "misfits"), "--variants", "none"]
    misfits = {
        "random:gama=1": "has no option 'gama'",
        "agentvit-minus": "agent must be one of",
        "random:n_patch_desired=50": "n_patch_desired must be in 1..49, .* got 50",
        "random:n_patch_desired=half": "n_patch_desired must be in 1..49, .* got 'half'",
        "none:max_steps=1": "at least one for each of the 2 evaluations, got 1 for 'none:max_steps=1'",
    }
    for variant, message in misfits.items():
        with pytest.raises(ValueError, match=message):
            compare.main([*words, variant])
    with pytest.raises(ValueError, match="n_patch_desired must be in 1..49"):
        compare.main([*words, "random", "--n_patch_desired", "50"])


def test_parts_of_a_comparison_become_one_and_are_published(place, comparing, compared, tmp_path):
    other = place.folder / "other_seed"
    compare.main([*comparing, "2", "--output_dir", str(other), "--variants", "random:return_fraction=0.5"])
    parts = [str(folder / "compare.json") for folder in (compared[1], other)]
    merged = merge.main(["--parts", *parts, "--output", str(tmp_path)])
    assert len(merged["runs"]) == 11 and json.loads((tmp_path / "compare.json").read_text())["runs"] == merged["runs"]
    assert {"compare.md", "compare.png"} <= set(os.listdir(tmp_path))
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}{END}")
    report.main(["--readme", str(readme), str(tmp_path / "compare.json")])
    text = readme.read_text()
    assert "### Agents compared" in text and "| random:return_fraction=0.5 | 3 |" in text
    assert str(place.folder) not in text
    with pytest.raises(ValueError, match="already holds a comparison"):
        merge.main(["--parts", *parts, "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="give --parts FILE ... and --output FOLDER"):
        merge.main(["--output", str(tmp_path / "new")])


def test_results_on_chosen_patches_have_a_row_of_their_own(place, tmp_path):
    words = ["--gates", "none", "--teacher", "none", "--agent", "agentvit-plus", "--n_patch_desired", "6"]
    results = place.train("chosen", *words, "--agent_evaluation", "chosen", "--max_steps", "2")
    card = (place.folder / "chosen" / "README.md").read_text()
    assert "| agent | agentvit-plus |" in card and "of 16 |" in card
    for picture in ("keep_map.png", "agent_patches.png"):
        assert f"]({picture})" in card and (place.folder / "chosen" / picture).exists()
    chosen = results["chosen"]
    assert chosen["cost"] < 1.0 == results["cost"] == results["dense"]["cost"]
    assert chosen["gmacs"] == pytest.approx(chosen["cost"] * results["gmacs_dense"])
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}{END}")
    report.main(["--readme", str(readme), str(place.folder / "chosen" / "results.json")])
    rows = [line for line in readme.read_text().splitlines() if "agentvit-plus, 6 of 16 patches" in line]
    assert len(rows) == 2 and "patches |" in rows[0] and "patches, on the patches it chooses |" in rows[1]
    assert f"| {chosen['cost']:.3f} |" in rows[1] and "| 1.000 |" in rows[0]
