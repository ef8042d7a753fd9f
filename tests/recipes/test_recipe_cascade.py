"""Cascades by the recipes: put on a plain ViT or on a model that was trained without, trained, evaluated, shown."""

import json
from dataclasses import replace

import pytest
import torch
from made_results import speed
from recipe_place import dial, evaluate, report, search, train

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.deploy import CompiledDynViT


PATCH = "[{gate: patch, drop: true, novelty: 8}]"
LOOKS = ["--cascade", "24@0.5", "32@0.8"]


def test_a_plain_vit_becomes_a_cascade_and_is_evaluated_at_any_of_its_budgets(place, tmp_path, capsys):
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", PATCH, *LOOKS, "--budget", "0.7"]
    _, cost = dial.main([*words, "--output", str(tmp_path / "looks")])
    assert cost == pytest.approx(0.7, abs=0.1) and "images are done from a probability of" in capsys.readouterr().out
    words = ["--model", str(tmp_path / "looks"), "--data_files", f"{place.folder}/validation.parquet"]
    words += ["--json", str(tmp_path / "at.json")]
    at = evaluate.main([*words, "--batch_sizes", "4", "--rounds", "2", "--no-compile"])
    assert [look["budget"] for look in at["cascade"]] == [0.5, 0.8] and at["usage"] == {} and at["throughput"]
    one, both, chance = *at["looks"]["accuracy"], at["looks"]["at_random"]
    assert sum(at["looks"]["shares"]) == pytest.approx(1) and min(one, both) - 1e-6 <= chance <= max(one, both) + 1e-6
    assert at["looks"]["cost"][0] <= at["cost"] <= at["looks"]["cost"][1]
    cheaper = evaluate.main([*words, "--batch_sizes", "0", "--budget", str(at["budgets"][0])])
    assert cheaper["cost"] < at["cost"]
    tables = report.main([str(tmp_path / "at.json")])
    assert "cascade of 24 px at 0.5, 32 px at 0.8" in tables and "### Cascades" in tables
    with pytest.raises(ValueError, match="a cascade has several"):
        evaluate.main([*words, "--per_image", "2"])
    with pytest.raises(ValueError, match="searched for one look"):
        options = ["--objectives", "error+cost", "--policy", "process", "--validation_fraction", "0.5"]
        search.main([*words[:2], "--output", str(tmp_path / "search"), "--data_files", *place.files, *options])


def test_merges_are_fixed_in_each_look_and_confidence_alone_decides(place, tmp_path, capsys, monkeypatch):
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "[{gate: merge, distance: 4}]", *LOOKS]
    shift, cost = dial.main([*words, "--budget", "0.8", "--fixed", "true", "--output", str(tmp_path / "fixed")])
    assert f"images are done from a probability of {shift:.3f}: mean cost {cost:.3f}" in capsys.readouterr().out
    model = DynViTForImageClassification.from_pretrained(tmp_path / "fixed").eval()
    assert all(len(entry["merged"]) == 2 for entry in model.config.gates) and cost == pytest.approx(0.8, abs=0.1)
    pixels = torch.randn(5, 3, 32, 32)
    for look, known in enumerate(model.config.cascade):
        assert model(pixels, look=look).cost.tolist() == pytest.approx([known["budget"]] * 5, abs=1e-4)
    assert model.config.budget_confidences is not None
    programs = []

    def time(entrant, size, seconds, rounds, program, **how):
        programs.append(program)
        return replace(speed(size), program_ms=2.0)

    monkeypatch.setattr(evaluate, "time_batches", time)
    monkeypatch.setattr(evaluate, "kernels_at_hand", lambda dtype: False)
    monkeypatch.setattr(evaluate, "check_compiler", lambda device: None)
    words = ["--model", str(tmp_path / "fixed"), "--data_files", f"{place.folder}/validation.parquet", "--json"]
    evaluate.main([*words, str(tmp_path / "at.json"), "--batch_sizes", "2", "4"])
    assert isinstance(programs[0], CompiledDynViT) and programs[1] is programs[0]
    assert "times as fast, compiled 2.25 times" in capsys.readouterr().out
    assert "compiled 2.25×" in report.main([str(tmp_path / "at.json")])


def test_a_training_takes_looks_in_turn_and_leaves_a_cascade(place):
    gates = ["--gates", PATCH, *LOOKS, "--budget", "0.7", "--freeze_gates_at", "0", "--max_steps", "4"]
    recipe, folder = place.folder / "budgets.yaml", place.folder / "cascade"
    recipe.write_text(place.recipe.read_text() + "\ntuning_budgets: [0.5, 0.6]\n")  # which the looks set aside
    held_out = ["--validation_fraction", "0.2"]
    results = train.main([str(recipe), "--output_dir", str(folder), *gates, *held_out, "--teacher", "none"])
    assert [look["resolution"] for look in results["cascade"]] == [24, 32]
    model = DynViTForImageClassification.from_pretrained(folder)
    assert model.config.budget_confidences is not None and model.config.budget == 0.7
    card = (folder / "README.md").read_text()
    assert "cascade of 24 px at 0.5" in card and "\nout.looks  #" in card and "\nout.decisions" not in card
    assert json.loads((folder / "config.json").read_text())["cascade"] == model.config.cascade


def test_a_cascade_is_not_trained_without_images_that_are_held_out(place):
    words = [
        "--output_dir",
        str(place.folder / "seen"),
        "--cascade",
        "auto",
        "--budget",
        "0.5",
        "--validation_fraction",
        "0",
    ]
    with pytest.raises(
        ValueError, match="hold out a part of train to calibrate it on, with validation_fraction above 0"
    ):
        train.main([str(place.recipe), *words])


def test_a_trained_cascade_of_sizes_is_saved_as_one(place):
    looks = ["--gates", "none", "--cascade", "24@0.5", "32@1.0", "--budget", "0.7", "--max_steps", "2"]
    results = place.train("sizes", *looks, "--teacher", "none", "--validation_fraction", "0.2")
    model = DynViTForImageClassification.from_pretrained(place.folder / "sizes")
    assert results["cascade"] == model.config.cascade and model.config.budget_confidences is not None
    assert results["cascade"][0]["budget"] > 0.5  # what it really costs
    assert "Every image gets the first look" in (place.folder / "sizes" / "README.md").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cascade", "24"], "must be auto, every, or looks"),
        ([*LOOKS, "--resolution", "24"], "a cascade is for one --budget"),
        ([*LOOKS, "--budget", "0.2"], "out of reach of this cascade"),
        (["--cascade", "24@0.5", "32@0.2"], "begin with the cheapest"),
    ],
)
def test_looks_that_are_none_are_refused_before_anything_runs(place, tmp_path, words, message):
    given = ["--model", place.vit, "--data_files", *place.files, "--gates", PATCH, "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        dial.main([*given, *([] if "--budget" in words else ["--budget", "0.7"]), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word, costs", [("auto", [0.3333, 0.8333]), ("every", [0.2, 0.3333, 0.8333])])
def test_sizes_of_looks_are_tried(place, tmp_path, capsys, word, costs):
    words = [
        "--model",
        place.vit,
        "--data_files",
        *place.files,
        "--gates",
        PATCH,
        "--cascade",
        word,
        "--budget",
        "0.6",
    ]
    dial.main([*words, "--output", str(tmp_path / word)])
    looks = DynViTForImageClassification.from_pretrained(tmp_path / word).config.cascade
    assert [look["budget"] for look in looks] == costs and all(look["resolution"] in (16, 24, 32) for look in looks)
    said = ", ".join(f"{look['resolution']} px at a mean cost of {look['budget']}" for look in looks)
    assert f"looks: {said}" in capsys.readouterr().out
