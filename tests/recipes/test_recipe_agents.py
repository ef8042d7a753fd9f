"""The recipes step_time.py, compare_agents.py and merge_comparisons.py: agents are timed and held against each other."""

import json
import os
import re

import pytest
import torch
from places import RECIPES
from recipe_place import END, START, compare, merge, report, step_time
from transformers import ViTForImageClassification

from hf_dynvit.training.arguments import DynViTTrainingArguments


def published_rows(folder, file):
    """Lines of the tables that report.py makes of one file, headers apart."""
    readme = folder / "README.md"
    readme.write_text(f"{START}{END}")
    report.main(["--readme", str(readme), str(file)])
    assert "### Training steps" in readme.read_text()
    return [line for line in readme.read_text().splitlines() if line.startswith("| ")][2:]


def test_a_checkpoint_in_16_bit_is_timed_as_it_would_be_trained(place, tmp_path):
    half = ViTForImageClassification.from_pretrained(place.deep_vit, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    words = ["--model", str(tmp_path / "half"), "--batch_size", "2", "--draws", "1", "--seconds", "0.1"]
    assert step_time.main([*words, "--device", "cpu", "--json", str(tmp_path / "step.json")])["steps"]


def test_steps_are_timed_and_reported(place, tmp_path):
    words = ["--model", place.deep_vit, "--batch_size", "4", "--seconds", "0.1", "--draws", "2", "--agents", "center"]
    results = step_time.main([*words, "--json", str(tmp_path / "step.json")])
    gated, center = results["steps"]
    assert gated["cost"] == pytest.approx(0.5, abs=0.1)
    assert gated["time_ratio"] == gated["ms"] / min(results["dense_ms"].values())
    assert 0 < gated["memory_ratio"] < 1
    gates, shown = published_rows(tmp_path, tmp_path / "step.json")
    assert "| block | all | 0." in gates and f"| {gated['time_ratio']:.2f} |" in gates
    assert "| center | 8.0 of 16 | 0." in shown and f"| {center['time_ratio']:.2f} |" in shown


def test_steps_with_agents_are_timed_as_often_as_they_learn(place, tmp_path):
    agents = ["agentvit:hidden=8,hidden2=8", "agentvit-plus:learn_every=2", "random"]
    words = ["--model", place.vit, "--batch_size", "4", "--seconds", "0.1", "--gates", "none"]
    out = tmp_path / "step.json"
    results = step_time.main([*words, "--json", str(out), "--agents", *agents, "--n_patch_desired", "6"])
    assert [row["agent"] for row in results["steps"]] == agents
    for row in results["steps"]:
        assert row["time_ratio"] == row["ms"] / min(results["dense_ms"].values())
        assert row["ms"] == min(times["mean"] for times in row["step_ms"].values())
        assert 0 < row["cost"] < 1 and row["n_patch_desired"] == 6
        assert 0 < row["memory_ratio"] < (1 if row["agent"] == "random" else 2)  # the others' own, beside a tiny ViT
    assert [row["learn_every"] for row in results["steps"]] == [50, 2, 1]
    assert [row["kept"] for row in results["steps"]][1:] == pytest.approx([6.0, 6.0])
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
    assert set(written["summary"]) == set(VARIANTS) and written == json.loads(json.dumps(results))
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
    # The published agent's row says how many of its masks were random.
    assert all(
        re.search(rf"\| {re.escape(variant)}( \(\d+ % of its masks random\))? \| 2 \|", text) for variant in VARIANTS
    )
    assert {"compare.png", "agentvit_0", "agentvit_1"} <= set(os.listdir(folder))
    assert {"keep_map.png", "agent_patches.png"} <= set(os.listdir(folder / "agentvit_0"))


def test_the_agent_of_the_recipe_has_the_options_of_the_recipe(tmp_path):
    given = {"merge": False, "novelty": 2.0}
    args = DynViTTrainingArguments(str(tmp_path), agent="agentvit-plus", agent_options=given, max_steps=4)
    variants = {
        "agentvit-plus": given,
        "agentvit-plus:novelty=3.0": given | {"novelty": 3.0},
        "random": {},
        "none": {},
    }
    for variant, options in variants.items():
        assert compare.run_arguments(variant, args, 2).agent_options == options


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
