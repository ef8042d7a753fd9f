"""Cards of models that calibrate.py leaves and evaluate.py measures: what was done to them, and what is known of them now."""

import json

import pytest
from recipe_place import dial, evaluate

from hf_dynvit.report.results import Calibration
from hf_dynvit.report.schema import read


def test_a_calibrated_model_has_a_card_and_evaluate_puts_its_numbers_there(place, tmp_path):
    folder = tmp_path / "all"
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "merge", "--images", "12"]
    _, cost = dial.main([*words, "--budgets", "0.9", "0.85", "--output", str(folder)])
    found = read(folder / "calibration.json")
    assert isinstance(found, Calibration) and (found.images, found.budgets, found.cost) == (12, [0.9, 0.85], cost)
    card = (folder / "README.md").read_text()
    assert (
        f"| calibrated on | 12 images (train), whose labels were not read |\n| mean cost on them | {cost:.3g}" in card
    )
    assert "top-1" not in card and "a local data set" in card and str(tmp_path) not in card

    words = ["--model", str(folder), "--data_files", f"{place.folder}/validation.parquet", "--card", "true"]
    words += ["--json", str(tmp_path / "at.json"), "--batch_sizes", "4", "--rounds", "2", "--no-compile"]
    results = evaluate.main(words)
    card = (folder / "README.md").read_text()
    assert f"| this model | {100 * results['accuracy']:.2f} % |" in card and "| calibrated on | 12 images" in card
    assert f"{results['throughput'][0]['speedup']:.2f}×" in card and "![What is computed of eight" in card
    assert (folder / "decisions.png").is_file()


def test_what_a_training_says_stays_on_the_card(place, trained, tmp_path):
    words = ["--model", str(place.folder / "trained"), "--data_files", *place.files, "--images", "12"]
    dial.main([*words, "--budget", "0.9", "--output", str(tmp_path / "turned")])
    rows = read(tmp_path / "turned" / "calibration.json").before
    assert (
        rows["steps"] == trained["steps"] and rows["learning_rate"] == trained["settings"]["training"]["learning_rate"]
    )
    card = (tmp_path / "turned" / "README.md").read_text()
    assert f"| steps | {trained['steps']} |" in card and "| calibrated on |" in card
    older = json.loads((tmp_path / "turned" / "calibration.json").read_text()) | {"schema": 1}
    (tmp_path / "turned" / "calibration.json").write_text(json.dumps(older))
    dial.main(
        ["--model", str(tmp_path / "turned"), *words[2:], "--budget", "0.85", "--output", str(tmp_path / "again")]
    )
    assert read(tmp_path / "again" / "calibration.json").before == {}


def test_no_card_takes_the_place_of_another(place, tmp_path):
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
    with pytest.raises(ValueError, match="README.md was not written here: move it away"):
        evaluate.main(["--model", str(tmp_path), *words])
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
