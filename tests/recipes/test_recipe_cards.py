"""Cards of models that calibrate.py leaves and evaluate.py measures: what was done to them, and what is known of them now."""

import json
import shutil
import sys

import pytest
from huggingface_hub import ModelCard
from made_results import speed
from recipe_place import dial, evaluate, report, train

from hf_dynvit.report.calibration_results import Calibration
from hf_dynvit.report.schema import read


@pytest.fixture
def clocked(monkeypatch):
    """What a clock that is not there says of each batch size."""
    monkeypatch.setattr(evaluate, "time_batches", lambda mixed, size, *args, **more: speed(size, 1.5, program_ms=20.0))
    monkeypatch.setattr(evaluate, "kernels_at_hand", lambda dtype: False)
    monkeypatch.setattr(evaluate, "check_compiler", lambda device: None)


def test_a_calibrated_model_has_a_card_and_evaluate_puts_its_numbers_there(place, tmp_path, monkeypatch, clocked):
    folder, hidden = tmp_path / "all", "/home/alice/clients/acme"
    monkeypatch.setattr(sys, "orig_argv", ["python", "x.py", "--model", f"{hidden}/vit"])
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "merge"]
    words += ["--images", "12", "--crop_pct", "0.9"]
    _, cost = dial.main([*words, "--budgets", "0.9", "0.85", "--output", str(folder)])
    found = read(folder / "calibration.json")
    assert isinstance(found, Calibration) and (found.images, found.crop_pct) == (12, 0.914)  # 32 of 35 pixels
    assert (found.budget, found.budgets, found.cost) == (0.9, [0.85, 0.9], cost)
    card = ModelCard.load(folder / "README.md")
    assert "| calibration | calibrated on 12 images (train), whose labels were not read |" in card.text
    assert f"| mean cost on them | {cost:.3f}, at a budget of 0.9 |\n| further budgets | 0.85 |" in card.text
    assert "Any other from 0.85 to 0.9 can be asked for" in card.text and card.data.eval_results is None
    assert "top-1" not in card.text and "the middle 0.914 of each" in card.text
    for part in ("alice", "acme", str(tmp_path), place.folder.name):
        assert part not in card.content and "vit" in card.text

    with pytest.raises(ValueError, match="calibration.json says what calibrate.py did, and no table shows that"):
        report.main([str(folder / "calibration.json")])
    card.data.license, card.data.license_name, card.data.base_model = "other", "mine-1.0", ["you/a", "you/b"]
    card.save(folder / "README.md")
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "x.py", f"--files=validation={hidden}/v.parquet", "clients/acme/vit"]
    )
    words = ["--model", str(folder), "--data_files", f"{place.folder}/validation.parquet", "--card", "true"]
    words += ["--json", str(tmp_path / "at.json"), "--batch_sizes", "4", "--dense", place.vit]
    with pytest.raises(ValueError, match=r"look at other parts of images, \[0.914, None\]: give --crop_pct for both"):
        evaluate.main(words)
    with pytest.raises(ValueError, match="saved with the model, and --crop_pct 0.8 is another"):
        evaluate.main([*words, "--crop_pct", "0.8"])
    results = evaluate.main([*words, "--crop_pct", "0.9"])
    card = ModelCard.load(folder / "README.md")
    assert (
        f"| this model | {100 * results['accuracy']:.2f} % |" in card.text
        and "| calibration | calibrated" in card.text
    )
    assert "1.50×" in card.text and "compiled as a whole" in card.text and "![What is computed of some" in card.text
    assert f"| dense, {place.vit.rpartition('/')[2]} |" in card.text
    assert (card.data.license, card.data.license_name, card.data.base_model) == (
        "other",
        "mine-1.0",
        ["you/a", "you/b"],
    )
    assert "- This model: mine-1.0.\n- It was made from [you/a]" in card.text and "made from [you/b]" in card.text
    assert "--files=validation=v.parquet vit" in card.text and "acme" not in card.content
    assert (folder / "decisions.png").is_file() and "alice" not in card.content


def test_what_a_training_says_stays_on_the_card_and_an_earlier_calibration_goes(place, trained, tmp_path):
    words = ["--data_files", *place.files, "--images", "12", "--validation_fraction", "0.5"]
    words = ["--model", str(place.folder / "trained"), *words]
    dial.main([*words, "--budgets", "0.9", "0.95", "--output", str(tmp_path / "turned")])
    rows = read(tmp_path / "turned" / "calibration.json").before
    assert (
        rows["steps"] == trained["steps"] and rows["learning_rate"] == trained["settings"]["training"]["learning_rate"]
    )
    card = (tmp_path / "turned" / "README.md").read_text()
    assert f"| steps | {trained['steps']} |" in card and "images (held out of train), whose labels" in card
    assert "| further budgets | 0.95 |" in card
    words[1] = str(tmp_path / "turned")
    dial.main([*words, "--budget", "0.85", "--output", str(tmp_path / "again")])
    card = (tmp_path / "again" / "README.md").read_text()
    assert f"| steps | {trained['steps']} |" in card and "further budgets" not in card and "budget of 0.85 |" in card
    older = json.loads((tmp_path / "turned" / "calibration.json").read_text()) | {"schema": 1}
    (tmp_path / "turned" / "calibration.json").write_text(json.dumps(older))
    with pytest.raises(
        ValueError, match="says what would be lost, for there is no results.json or calibration.json of this"
    ):
        evaluate.main(
            [*words[:2], "--data_files", place.files[-1], "--json", str(tmp_path / "a.json"), "--card", "true"]
        )
    (tmp_path / "turned" / "README.md").write_text("---\nlicense: [\n---\n")
    dial.main([*words, "--budget", "0.85", "--output", str(tmp_path / "unknown")])
    assert read(tmp_path / "unknown" / "calibration.json").before == {}


def test_a_rule_was_brought_to_no_budget(place, tmp_path):
    words = ["--model", place.vit, "--gates", "[{gate: tome, merged: 2}]", "--images", "12"]
    words += ["--data_files", *place.files]
    _, cost = dial.main([*words, "--budget", "0.5", "--output", str(tmp_path / "rule")])
    card = (tmp_path / "rule" / "README.md").read_text()
    assert "| calibration | cost measured on 12 images" in card and f"| mean cost on them | {cost:.3f} |" in card


def test_no_card_takes_the_place_of_another_or_says_what_is_not_so(place, tmp_path):
    words = [
        "--data_files",
        f"{place.folder}/validation.parquet",
        "--json",
        str(tmp_path / "a.json"),
        "--card",
        "true",
    ]
    with pytest.raises(ValueError, match="beside a model in a folder, and 'you/vit' is none"):
        evaluate.main(["--model", "you/vit", *words])
    (tmp_path / "README.md").write_text("# Mine\n")
    words = ["--model", str(tmp_path), *words]
    with pytest.raises(ValueError, match="README.md says what would be lost, .* move it away"):
        evaluate.main(words)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    with pytest.raises(ValueError, match="and --budget 0.5 is for this run"):
        evaluate.main([*words, "--budget", "0.5"])
    with pytest.raises(ValueError, match="against all dense models: leave out --no-compile"):
        evaluate.main([*words, "--no-compile"])
    with pytest.raises(ValueError, match="csv and json would be the same file"):
        evaluate.main([*words, "--csv", str(tmp_path / "a.json")])


def test_a_trained_model_has_the_licence_of_its_start_and_terms_of_its_own_data(place, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(place.vit, start)
    (start / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(place.recipe.read_text() + "dataset_terms: those of the recipe's images\n")
    words = [str(recipe), "--model_name_or_path", str(start), "--max_steps", "1", "--output_dir"]
    train.main([*words, str(tmp_path / "same")])
    card = ModelCard.load(tmp_path / "same" / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "- Data: those of the recipe's images" in card.text
    train.main([*words, str(tmp_path / "own"), "--data_files", *place.files, "--license", "mit"])
    card = ModelCard.load(tmp_path / "own" / "README.md")
    assert card.data.license == "mit" and "those of the recipe" not in card.text
