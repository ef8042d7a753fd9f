"""The recipes evaluate.py, calibrate.py and report.py: what a model does is measured, and tables are written from that."""

import json
import re

import pandas
import pytest
import torch
from made_results import MEASURED, random_speed, written
from recipe_place import END, START, dial, evaluate, report
from transformers import AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.deploy.ways import OPEN, states
from hf_dynvit.measure.dense import AHEAD, OURS
from hf_dynvit.measure.per_image import check_decides
from hf_dynvit.model.bypass import bypass_of
from hf_dynvit.model.gate import Score
from hf_dynvit.report.markdown import command
from hf_dynvit.report.results import Benchmark
from hf_dynvit.report.schema import fill


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
            "--per_image",
            "9",
            "--csv",
            str(tmp_path / "images.csv"),
        ]
    )
    each = pandas.read_csv(tmp_path / "images.csv")
    assert each["right"].mean() == pytest.approx(results["accuracy"]) and len(each) == results["images"]
    assert each["cost"].mean() == pytest.approx(results["cost"]) and "looks" not in each
    assert each["row"].tolist() == list(range(len(each)))
    assert ((each["label"] == each["predicted"]) == each["right"]).all() and each["probability"].between(0, 1).all()
    assert json.loads(out.read_text()) == json.loads(json.dumps(results))
    assert results["accuracy_top5"] is None  # of 3 classes
    for name in ("accuracy", "cost", "gmacs"):
        assert results[name] == pytest.approx(trained[name], abs=1e-6)
    assert results["dense"]["accuracy"] == pytest.approx(trained["dense"]["accuracy"])
    assert [row["batch_size"] for row in results["throughput"]] == [1, 4]
    for row in results["throughput"]:
        assert set(row["dense_ms"]) == {"eager", "sdpa", OURS}
        assert row["dense_images_per_second"] == pytest.approx(1e3 * row["batch_size"] / min(row["dense_ms"].values()))
        assert row["speedup"] == pytest.approx(row["packed_images_per_second"] / row["dense_images_per_second"])

    assert results["per_image"]["images"] == 9 and (tmp_path / "cheapest_dearest.png").exists()

    for row in results["throughput"]:
        row["dense_ms"][AHEAD] = 1e9  # as if it had been compiled, without which nothing is published
    out.write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    front = tmp_path / "FRONT.md"
    front.write_text("title\n" + "".join("stale".join(report.markers(part)) for part in report.FRONTS))
    words = ["--readme", str(readme), "--front", str(front)]
    report.main([*words, str(place.folder / "trained" / "results.json"), str(out)])
    gains = ", ".join(
        f"batch {row['batch_size']} {row['speedup']:.2f}× ({row['realised']:.2f} at cost {row['timed_cost']:.2f})"
        for row in results["throughput"]
    )
    on_the_clock = " | ".join(
        f"{row['speedup']:.2f}× ({row['realised']:.2f} at {row['timed_cost']:.2f})" for row in results["throughput"]
    )
    assert "stale" not in front.read_text() and on_the_clock in front.read_text()
    text = readme.read_text()
    shown = f"| {100 * results['dense']['accuracy']:.2f} | – | {100 * results['accuracy']:.2f} at "
    assert gains in text and text.count(shown) == 1
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    assert text.count(f"| {100 * results['accuracy']:.2f} |") >= 2 and f"{results['cost']:.3f}" in text
    for row in results["throughput"]:
        assert f"| {row['packed_images_per_second']:.1f} |" in text
    found = results["per_image"]
    assert f"| {100 * found['accuracy']:.2f} at {found['cost']:.3f}" in text.partition("### Per image")[2]
    assert str(place.folder) not in text
    again = report.main(["--readme", str(readme), str(out)])
    assert "### Trained" not in again and readme.read_text().count(START) == 1


def test_rows_of_the_table_are_those_of_the_split(place, trained, tmp_path):
    words = ["--model", str(place.folder / "trained"), "--data_files", f"{place.folder}/validation.parquet"]
    words += ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv"), "--batch_sizes", "0"]
    evaluate.main([*words, "--max_samples", "5"])
    some = pandas.read_csv(tmp_path / "a.csv")
    evaluate.main(words)
    every = pandas.read_csv(tmp_path / "a.csv")
    assert len(some) == 5 and some["row"].tolist() != list(range(5))
    same = every.set_index("row").loc[some["row"]].reset_index()
    pandas.testing.assert_frame_equal(same, some, rtol=1e-4)


def test_evaluate_refuses_before_it_works(place, trained, tmp_path):
    words = ["--model", str(place.folder / "trained"), "--data_files", f"{place.folder}/validation.parquet"]
    with pytest.raises(ValueError, match="batch of 64 needs as many images, there are 12"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--batch_sizes", "64"])
    with pytest.raises(FileNotFoundError, match="no folder for"):
        evaluate.main([*words, "--json", str(tmp_path / "absent" / "a.json")])
    with pytest.raises(ValueError, match="dtype must be one of"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--dtype", "int8"])
    for given, said in (
        (["--json", str(tmp_path)], "json must be a file to write, .* is a folder"),
        (["--csv", str(tmp_path)], "csv must be a file to write, .* is a folder"),
        (["--rounds", "0"], "seconds must be positive and rounds at least 1, got 20.0 and 0"),
        (["--max_samples", "0"], "max_samples must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate.main([*words, "--json", str(tmp_path / "a.json"), *given])
    with pytest.raises(ValueError, match=r"dense must be a plain ViT, and .*trained has \['gates'\]"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--dense", str(place.folder / "trained")])
    with pytest.raises(ValueError, match="per_image must be at least 0, got -1"):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--per_image", "-1"])
    words[1] = place.vit
    with pytest.raises(
        ValueError, match=r"learned gates, with thresholds, and no random ones, the gates here are \[\]"
    ):
        evaluate.main([*words, "--json", str(tmp_path / "a.json"), "--per_image", "9"])
    with pytest.raises(ValueError, match="written by no recipe and not by the benchmark: its kind is None"):
        (tmp_path / "other.json").write_text("{}")
        report.main([str(tmp_path / "other.json")])


def test_what_is_evaluated_is_held_out_by_the_seed_and_no_more_than_asked_for(place, monkeypatch, tmp_path):
    found = []

    def refuse(entrant, args):
        found.append([entrant.images[index]["pixel_values"].sum().item() for index in range(len(entrant.images))])
        raise RuntimeError("opened")

    monkeypatch.setattr(evaluate, "accuracy", refuse)
    words = [
        "--model",
        place.vit,
        "--data_files",
        *place.files,
        "--json",
        str(tmp_path / "a.json"),
        "--batch_sizes",
        "0",
    ]
    held = ["--validation_split", "train", "--validation_fraction", "0.25"]
    for given in ([*held, "--seed", "0"], [*held, "--seed", "1"], ["--max_eval_samples", "3"], ["--max_samples", "4"]):
        with pytest.raises(RuntimeError, match="opened"):
            evaluate.main([*words, *given])
    assert len(found[0]) == len(found[1]) and set(found[0]) != set(found[1])
    assert [len(images) for images in found[2:]] == [3, 4]


def test_the_published_table_shows_no_folders_of_this_machine():
    line = (
        "python recipes/train.py a.yaml --model_name_or_path=/home/me/data/vit --data_files train=../../x/d/t.parquet"
    )
    expected = "python recipes/train.py a.yaml --model_name_or_path=data/vit --data_files train=d/t.parquet"
    assert command(line) == expected


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


def test_a_plain_vit_gets_gates_that_meet_a_budget_without_training(place, tmp_path):
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "merge", "--budget", "0.9"]
    _, cost = dial.main([*words, "--output", str(tmp_path / "merging")])
    assert cost == pytest.approx(0.9, abs=0.06)
    merging = DynViTForImageClassification.from_pretrained(tmp_path / "merging")
    assert merging.config.budget == 0.9 and [entry["gate"] for entry in merging.config.gates] == ["merge"]
    moved = [gate.score.weight.abs().max().item() for gate in merging.learned_gates()]
    assert min(moved) > 1e-4  # importance was learned on the same images
    plain = DynViTForImageClassification.from_vit(place.vit).state_dict()
    assert all(torch.equal(weight, merging.state_dict()[name]) for name, weight in plain.items())
    words[1] = str(tmp_path / "merging")
    with pytest.raises(ValueError, match="has gates already"):
        dial.main([*words, "--output", str(tmp_path / "again")])


def test_merges_are_fixed_at_a_budget(place, tmp_path, capsys):
    given = ["--model", place.vit, "--data_files", *place.files, "--fixed", "true"]
    words = [*given, "--gates", "[{gate: merge, distance: 4}]"]
    _, cost = dial.main([*words, "--budget", "0.8", "--output", str(tmp_path / "fixed")])
    model = DynViTForImageClassification.from_pretrained(tmp_path / "fixed").eval()
    assert f"as many merges in every image: mean cost {cost:.3f}" in capsys.readouterr().out
    found = model(torch.randn(4, 3, 32, 32)).cost
    assert found.tolist() == pytest.approx([cost] * 4) and cost == pytest.approx(0.8, abs=0.1)
    assert model.config.budget == cost and all(gate.score.weight.abs().max() > 0 for gate in model.learned_gates())
    with pytest.raises(ValueError, match="fixed merges are for one --budget"):
        dial.main([*words, "--budgets", "0.7", "0.8", "--output", str(tmp_path / "b")])
    with pytest.raises(ValueError, match="where merge gates alone drop tokens, here it is nothing"):
        dial.main([*given, "--gates", "layerskip", "--budget", "0.8", "--output", str(tmp_path / "c")])
    both = "[{gate: merge, distance: 4}, {gate: sublayer, layers: [1]}]"
    with pytest.raises(ValueError, match=r"the same in a look: no other gates, got \['sublayer'\]"):
        dial.main([*given, "--gates", both, "--budget", "0.8", "--output", str(tmp_path / "d")])
    assert OPEN not in states(model)  # no threshold opens it
    with pytest.raises(ValueError, match="with learned gates, with thresholds, and no random ones"):
        check_decides(model)


def test_the_unlearned_twin_and_gates_that_learn_nothing_keep_what_they_are(place, tmp_path):
    words = ["--model", place.vit, "--data_files", *place.files, "--budget", "0.9"]
    dial.main([*words, "--gates", "merge", "--importance", "false", "--output", str(tmp_path / "twin")])
    twin = DynViTForImageClassification.from_pretrained(tmp_path / "twin")
    assert not any(gate.score.weight.any() for gate in twin.learned_gates())
    shift, cost = dial.main([*words, "--gates", "[{gate: tome, merged: 2}]", "--output", str(tmp_path / "tome")])
    assert shift == 0.0 and 0.3 < cost < 1.0


def test_a_plain_vit_that_resizes_meets_a_budget_of_the_dense_model(place, tmp_path, capsys):
    words = ["--model", place.vit, "--data_files", *place.files, "--resolution", "24", "--budget", "0.5"]
    _, cost = dial.main([*words, "--gates", "merge", "--output", str(tmp_path / "small")])
    assert cost == pytest.approx(0.5, abs=0.06)
    capsys.readouterr()
    deep = ["--model", place.deep_vit, *words[2:-3], "auto", "--budget", "0.45"]
    dial.main([*deep, "--gates", "merge", "--output", str(tmp_path / "auto")])
    tried = dict(re.findall(r"(images as they come|24 px): ([0-9.]+) nats", capsys.readouterr().out))
    chosen = DynViTForImageClassification.from_pretrained(tmp_path / "auto").config.resolution
    assert {float(tried["24 px"]) < float(tried["images as they come"]): 24}.get(True) == chosen
    with pytest.raises(ValueError, match="resolution 24 is for new gates on a plain ViT"):
        dial.main([*words, "--output", str(tmp_path / "none")])


def test_a_plain_vit_gets_bypasses_that_are_fitted(place, tmp_path, capsys):
    words = ["--model", place.vit, "--data_files", *place.files, "--budget", "1", "--bypass_images", "12"]
    fitted = [*words, "--gates", "[{gate: sublayer, bypass: linear}]", "--output", str(tmp_path / "fitted")]
    shift, _ = dial.main(fitted)
    assert shift is None and "of what is skipped" in capsys.readouterr().out
    model = DynViTForImageClassification.from_pretrained(tmp_path / "fitted")
    assert not any(bypass.adds_nothing() for gates in model.gates for bypass in bypass_of(gates))
    with pytest.raises(ValueError, match="there is no bypass to fit"):
        dial.main([*words, "--gates", "layerskip", "--output", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="bypass_images 0, got 512 and -1"):
        dial.main([*fitted[:-1], str(tmp_path / "wrong"), "--bypass_images", "-1"])


def test_the_report_takes_the_benchmark_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before {START} old {END} after")
    row = random_speed(
        cost=0.5,
        dense_ms={"eager": 30.0, "sdpa": 25.0, AHEAD: 20.0, OURS: 24.0},
        packed_ms=12.5,
        peak_mib={"dense": 30.25, OURS: 44.0, "packed": 36.0},
        prepacked_mib={"dense": 0.0, OURS: 21.0, "packed": 21.0},
    )
    made = fill(Benchmark, {**MEASURED, "instructions": "AVX2", "command": "python benchmark", "rows": [row]}, "made")
    report.main(["--readme", str(readme), str(written(tmp_path, made, "speed.json"))])
    assert (
        "| tiny | float32 | 8 | patch | 0.500 | 20.0 (compiled ahead of time) | 12.5 | yes | 1.60× | 0.80 | 1.92× "
        "| 30.2; 44.0 (21.0); 36.0 (21.0) | 9 | 2 | A CPU (AVX2) | 0 | abc | [1] |" in readme.read_text()
    )
    assert "1. `python benchmark`" in readme.read_text() and " old " not in readme.read_text()
    (tmp_path / "other.json").write_text(json.dumps({"rows": [{"accuracy": 1}]}))
    with pytest.raises(ValueError, match="was written by no recipe"):
        report.main(["--readme", str(readme), str(tmp_path / "other.json")])


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
