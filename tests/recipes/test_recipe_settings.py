"""Settings of recipes: the command line wins, presets say how gates are taught, mistakes are named before any work."""

import pytest
import yaml
from image_files import write_folders
from places import RECIPES
from recipe_place import deploy, dial, evaluate, points, runtimes, search, step_time, train

from hf_dynvit.settings import parse_settings
from hf_dynvit.training import recipe_words
from hf_dynvit.training.starting_model import ModelArguments


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


def test_a_list_of_the_file_is_emptied_by_its_key_alone(place, tmp_path):
    types = (ModelArguments, train.DataArguments, train.DynViTTrainingArguments)
    file = tmp_path / "listed.yaml"
    file.write_text(f"{place.recipe.read_text()}\nfreeze_gates_at: 0.0\ntuning_budgets: [0.5, 0.6]\n")
    words = [str(file), "--output_dir", str(tmp_path)]
    assert parse_settings(words, *types)[2].tuning_budgets == [0.5, 0.6]
    assert parse_settings([*words, "--tuning_budgets"], *types)[2].tuning_budgets == []
    assert parse_settings([*words, "--tuning_budgets", "--bf16", "false"], *types)[2].tuning_budgets == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*_cpu.yaml")), ids=lambda recipe: recipe.stem)
def test_a_recipe_needs_no_word_beside_its_file(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # without data: the first thing that a run asks for
    with pytest.raises((OSError, ValueError), match=r"there is no file 'data/|'(data|outputs)/\w+' cannot be loaded"):
        train.main([str(recipe)])


@pytest.mark.parametrize("recipe", [evaluate, dial, search, deploy, runtimes, points])
@pytest.mark.parametrize("key", ["min_crop_area", "horizontal_flip", "max_train_samples"])
def test_what_is_for_training_alone_is_refused_elsewhere(recipe, key):
    with pytest.raises(ValueError, match=f"unknown key '{key}' in the command line"):
        recipe.main([f"--{key}", "1"])


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


def test_the_preset_of_the_gates_says_how_they_are_taught(place):
    results = place.train("preset", "--gates", "layerskip", "--price_gain", "0.25", "--max_steps", "2")
    training = results["settings"]["training"]
    assert (training["objective"], training["price_gain"]) == ("reinforce", 0.25)


def test_gates_that_are_kept_keep_their_budget(place, skipping):
    recipe = yaml.safe_load(place.recipe.read_text())
    del recipe["budget"]
    (place.folder / "no_budget.yaml").write_text(yaml.safe_dump(recipe))
    words = [str(place.folder / "no_budget.yaml"), "--output_dir", str(place.folder / "no_budget"), "--max_steps", "1"]
    results = train.main([*words, "--model_name_or_path", str(skipping[1]), "--gates", "keep"])
    assert results["settings"]["model"]["budget"] == 0.8
    assert ModelArguments(model_name_or_path="vit").budget == 0.5


def test_the_command_line_wins_over_a_block_of_options_too(tmp_path):
    file = tmp_path / "block.yaml"
    file.write_text("objective: cost\nobjective_options: {cost_weight: 3.0}\n")
    words = [str(file), "--output_dir", str(tmp_path / "out")]
    (training,) = parse_settings(words, train.DynViTTrainingArguments)
    assert training.objective_options == {"cost_weight": 3.0}
    (training,) = parse_settings([*words, "--cost_weight", "5"], train.DynViTTrainingArguments)
    assert training.objective_options == {"cost_weight": 5.0}
    file.write_text("objective: cost\nobjective_options: {prize: 3.0}\n")
    with pytest.raises(ValueError, match="prize"):
        parse_settings(words, train.DynViTTrainingArguments)


def test_a_key_with_hyphens_counts_like_any_other(place, tmp_path):
    words = [str(place.recipe), "--output-dir", str(tmp_path), "--data-files", "x.parquet", "--bf16=false"]
    file = tmp_path / "terms.yaml"
    file.write_text(f"{place.recipe.read_text()}\ndataset_terms: those of other images\n")
    seen = []

    def aside(file_words, argv):
        seen.append(argv)
        return recipe_words.terms_set_aside(argv)

    types = (ModelArguments, train.DataArguments, train.DynViTTrainingArguments)
    model, _, training = parse_settings([str(file), *words[1:]], *types, set_aside=aside)
    assert seen == [["--output_dir", str(tmp_path), "--data_files", "x.parquet", "--bf16=false"]]
    assert model.dataset_terms is None and training.output_dir == str(tmp_path)
    with pytest.raises(ValueError, match="unknown key 'output-folder' in the command line"):
        parse_settings([*words, "--output-folder", "x"], *types)


def test_a_folder_of_other_files_is_left_alone(place, tmp_path):
    for name in ("mine.py", "README.md"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("precious")
        (folder / "images").mkdir()
        with pytest.raises(ValueError, match=f"holds {name}, and is the folder of no run"):
            place.train("any", "--output_dir", str(folder))
        assert (folder / name).read_text() == "precious"
    with pytest.raises(ValueError, match=f"output_dir '{folder / name}' is a file: give a folder"):
        place.train("any", "--output_dir", str(folder / name))


def test_where_results_go_is_checked_before_anything_is_measured(place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder for .*absent/step\.json"):
        step_time.main(["--model", place.vit, "--json", str(tmp_path / "absent" / "step.json")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        deploy.main(["--model", place.vit, "--output", str(tmp_path / "full")])
    with pytest.raises(ValueError, match=r"crop_pct must be in \(0, 1\], or 0 .*got 1\.5"):
        deploy.main(["--model", place.vit, "--output", str(tmp_path / "new"), "--crop_pct", "1.5"])
    words = [deploy.ExportArguments, deploy.OptionalImageArguments]
    given = ["--model", place.vit, "--output", str(tmp_path / "new"), "--crop_pct", "0"]
    assert parse_settings(given, *words)[1].crop_pct is None
