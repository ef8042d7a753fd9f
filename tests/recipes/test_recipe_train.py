"""The recipe train.py: one command trains, measures, writes and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_files import NAMES, write_folders
from places import RECIPES, ROOT
from recipe_place import evaluate, train
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification, ViTForImageClassification

from hf_dynvit.report import read
from hf_dynvit.report.names import model_name


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


def test_a_folder_that_holds_a_run_is_refused(place, trained):
    before = (place.folder / "trained" / "results.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run \\(finished\\).*evaluate.py.*another output_dir"):
        place.train("trained")
    assert (place.folder / "trained" / "results.json").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        place.train("new", "--resume_from_checkpoint", "true")


def test_what_a_run_that_was_ended_early_left_is_said_as_it_is(place, monkeypatch):
    def killed(*args):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "write", killed)
        place.train("ended", "--max_steps", "1", "--gates", "none", "--evaluate_dense", "false")
    folder = place.folder / "ended"
    assert (folder / "model.safetensors").exists() and not (folder / "results.json").exists()
    words = f"its model, without results.json, before which it was ended\\): measure it with recipes/evaluate.py --model {folder}"
    with pytest.raises(ValueError, match=f"already holds a run \\({words}; or give another output_dir"):
        place.train("ended")
    with pytest.raises(FileNotFoundError, match=f"no checkpoint to resume from .*{words}"):
        place.train("ended", "--resume_from_checkpoint", "true")
    half = place.folder / "half" / "checkpoint-3"
    half.mkdir(parents=True)
    for more in ([], ["--resume_from_checkpoint", "true"]):
        with pytest.raises((ValueError, FileNotFoundError), match="checkpoint-3: trainer_state.json is missing"):
            place.train("half", *more)


def test_a_card_does_not_name_the_folder_of_the_data(place, trained):
    card = (place.folder / "trained" / "README.md").read_text()
    assert place.folder.name not in card and "of a local data set (validation = " in card
    assert trained["dataset"] == place.folder.name


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


def test_a_model_that_resizes_is_tuned_and_stays_one(place):
    words = ["--gates", "none", "--max_steps", "2", "--resolution", "24"]
    results = place.train("resized", *words)
    assert results["resolution"] == 24 and 0.4 < results["cost"] < 0.7 and results["dense"]["cost"] == 1.0
    assert model_name(read(place.folder / "resized" / "results.json")) == "dense at 24 px"
    config = AutoConfig.from_pretrained(place.folder / "resized", trust_remote_code=True)
    assert config.resolution == 24
    with pytest.raises(ValueError, match="agent 'random' chooses patches of the images as they come"):
        place.train("chosen", *words, "--agent", "random", "--n_patch_desired", "6")
    with pytest.raises(ValueError, match="resolution 24 is for a dense checkpoint"):
        place.train("kept", *words, "--gates", "keep")


def test_a_model_whose_last_layer_is_as_it_is_read_is_tuned_and_stays_one(place):
    words = ["--gates", "none", "--max_steps", "2", "--last_layer", "read"]
    results = place.train("read", *words)
    assert results["last_layer"] == "read" and results["cost"] < results["dense"]["cost"] == 1.0
    assert model_name(read(place.folder / "read" / "results.json")) == "dense, last layer as it is read"
    assert results["accuracy"] == place.train("whole", *words[:-2])["accuracy"]
    with pytest.raises(ValueError, match="last_layer 'read' is for a dense checkpoint"):
        place.train("kept", *words, "--gates", "keep")


def test_the_card_says_what_an_agent_did_and_nothing_of_gates(place, trained):
    words = ["--gates", "none", "--teacher", "none", "--agent", "random", "--n_patch_desired", "6"]
    place.train("by_agent", *words)
    card = (place.folder / "by_agent" / "README.md").read_text()
    assert "| agent | random |" in card and "| its options | return_fraction 0.0, merge False |" in card
    assert "| patches in training | 6.0 of 16 |" in card and "keep_map.png" in card and "| learning_rate |" in card
    assert "gate_learning_rate" not in card
    assert "| gate_learning_rate | 0.02 |" in (place.folder / "trained" / "README.md").read_text()


def test_new_classes_come_from_the_data(place):
    write_folders(place.folder / "images")
    results = train.main(
        [str(place.recipe), "--output_dir", str(place.folder / "new_classes"), "--max_steps", "1", "--gates", "none"]
        + ["--dataset_name", "imagefolder", "--data_dir", str(place.folder / "images"), "--teacher", "none"]
        + ["--data_files", "none", "--new_classifier", "true"]
    )
    assert results["dataset"] == "images" and results["dense"] is None
    config = json.loads((place.folder / "new_classes" / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}


def test_what_is_pushed_has_no_checkpoints_or_arguments(place, trained, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    from hf_dynvit.report import publish

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


def test_a_model_with_gates_trains_on(place, skipping):
    words = ["--model_name_or_path", str(skipping[1])]
    results = place.train("trained_on", *words, "--gates", "keep", "--objective", "reinforce", "--train_body", "false")
    one, other = (load_file(folder / "model.safetensors") for folder in (skipping[1], place.folder / "trained_on"))
    assert one.keys() == other.keys() and results["steps"] == 4
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed and all(name.startswith("gates.") for name in changed)
    with pytest.raises(ValueError, match="gates 'keep' is for models with gates"):
        place.train("not_kept", *words, "--gates", "layerskip")


def test_the_dense_checkpoint_is_measured_after_a_training_that_fitted_bypasses(place):
    gates = "[{gate: block, value_width: 8, bypass: low_rank, rank: 2}]"
    results = place.train("with_bypass", "--gates", gates, "--bypass_images", "6", "--objective", "reinforce")
    assert results["dense"]["cost"] == 1.0 and (place.folder / "with_bypass" / "results.json").exists()


def test_gates_that_are_kept_keep_the_importance_that_they_learned(place):
    first = place.train("merging", "--gates", "merge", "--budget", "0.9", "--importance_images", "6")
    words = ["--model_name_or_path", str(place.folder / "merging"), "--gates", "keep", "--budget", "0.9"]
    assert first["settings"]["training"]["importance_images"] == 6
    assert place.train("merging_on", *words)["settings"]["training"]["importance_images"] == 0
    scores = [
        {
            name: weight
            for name, weight in load_file(place.folder / folder / "model.safetensors").items()
            if "score.weight" in name
        }
        for folder in ("merging", "merging_on")
    ]
    assert scores[0] and all(weight.any() for weight in scores[0].values())
    torch.testing.assert_close(*scores)


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
