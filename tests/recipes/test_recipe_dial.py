"""The recipe calibrate.py with several budgets or a time in place of one budget, and evaluate.py at one of them."""

import re
from functools import partial

import pandas
import pytest
import torch
from recipe_place import dial, evaluate
from transformers import AutoImageProcessor, ViTModel

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure import LatencyTable
from hf_dynvit.measure.files import check_classifier
from hf_dynvit.training import calibration, timed_resolution
from hf_dynvit.training.timed_calibration import OutOfReach, TimedCalibration


TABLE = {
    **{"device": "a CPU", "threads": 1, "dtype": "float32", "prepacked": True, "batch_size": 2},
    **{"tokens": [1, 17], "attention": [0.1, 1.7], "mlp": [0.2, 3.4], "rest": 2.0},
    "gates": [{"layers": [0, 1], "open": [0.0, 0.0], "closed": [0.0, 0.0]}],
}


def test_the_last_layer_can_be_as_it_is_read(place, tmp_path):
    words = ["--data_files", *place.files, "--budget", "0.7", "--last_layer", "read", "--images", "8"]
    gates = ["--gates", "[{gate: merge, distance: 4}]"]
    _, cost = dial.main(["--model", place.vit, *words, *gates, "--output", str(tmp_path / "few")])
    model = DynViTForImageClassification.from_pretrained(tmp_path / "few")
    assert model.config.last_layer == "read" and cost == pytest.approx(0.7, abs=0.1)
    assert "last layer as it is read" in (tmp_path / "few" / "README.md").read_text()
    model.config.last_layer = None
    model.save_pretrained(tmp_path / "whole")
    AutoImageProcessor.from_pretrained(place.vit).save_pretrained(tmp_path / "whole")
    dial.main(["--model", str(tmp_path / "whole"), *words, "--output", str(tmp_path / "again")])
    assert DynViTForImageClassification.from_pretrained(tmp_path / "again").config.last_layer == "read"
    with pytest.raises(ValueError, match=r"last_layer must be one of \(None, 'read'\), got 'none'"):
        dial.main(["--model", place.vit, *words, *gates, "--last_layer", "none", "--output", str(tmp_path / "no")])
    timed = ["--data_files", *place.files, "--milliseconds", "3", "--last_layer", "read"]
    with pytest.raises(ValueError, match="--milliseconds goes without --last_layer"):
        dial.main(["--model", place.vit, *timed, *gates, "--output", str(tmp_path / "no")])


def test_one_folder_serves_every_budget_and_is_evaluated_at_one(place, tmp_path, capsys):
    gates = ["--gates", "[{gate: patch, drop: true, novelty: 8}]", "--budgets", "0.9", "0.6", "0.75"]
    _, cost = dial.main(
        ["--model", place.vit, "--data_files", *place.files, *gates, "--output", str(tmp_path / "all")]
    )
    assert cost == pytest.approx(0.9, abs=0.03) and "one model for the budgets 0.6 (" in capsys.readouterr().out
    words = ["--model", str(tmp_path / "all"), "--data_files", f"{place.folder}/validation.parquet"]
    words += ["--json", str(tmp_path / "at.json"), "--batch_sizes", "0"]
    costs = []
    for budget in (None, "0.75", "0.65"):
        results = evaluate.main([*words, *(["--budget", budget] if budget else [])])
        assert results["budget"] == float(budget or 0.9) and results["budgets"] == [0.6, 0.75, 0.9]
        costs.append(results["cost"])
    assert costs == sorted(costs, reverse=True) and costs[1] == pytest.approx(0.75, abs=0.08)
    with pytest.raises(ValueError, match="a budget of 0.5 is out of reach: .* from 0.6 to 0.9"):
        evaluate.main([*words, "--budget", "0.5"])
    words[1] = place.vit
    with pytest.raises(ValueError, match="--budget 0.5 is for a model with a table of budgets"):
        evaluate.main([*words, "--budget", "0.5"])


def test_images_without_labels_are_enough(place, tmp_path):
    file = f"{place.folder}/train.parquet"
    bare, strange = tmp_path / "bare.parquet", tmp_path / "strange.parquet"
    rows = pandas.read_parquet(file)
    rows[["image"]].to_parquet(bare)
    rows.assign(label=1000).to_parquet(strange)  # classes that the model does not know
    found = []
    for number, data in enumerate((file, bare, strange)):
        words = ["--model", place.vit, "--gates", "merge", "--budget", "0.9", "--images", "12"]
        output = ["--data_files", f"train={data}", "--output", str(tmp_path / str(number))]
        found.append(dial.main([*words, *output]))
    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match="has no column 'label'"):
        evaluate.main(["--model", place.vit, "--data_files", str(bare), "--json", str(tmp_path / "a.json")])
    with pytest.raises(ValueError, match="has no column 'photo', its columns are"):
        dial.main(
            [*words, "--image_column", "photo", "--data_files", f"train={bare}", "--output", str(tmp_path / "n")]
        )


def test_a_model_is_calibrated_to_milliseconds_and_saved_with_its_latencies(place, tmp_path, monkeypatch, capsys):
    faked = {"latencies": LatencyTable(**TABLE), "medians": lambda calls, rounds: dict.fromkeys(calls, 0.016)}
    monkeypatch.setattr(calibration, "calibrate_milliseconds", partial(calibration.calibrate_milliseconds, **faked))
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "[{gate: patch, drop: true, novelty: 8}]"]
    words += ["--batch_size", "2", "--output", str(tmp_path / "timed")]
    with pytest.raises(
        ValueError, match="20.0 ms are out of reach: .* of a batch of 2 to between 3.200 and 12.200 ms"
    ):
        dial.main([*words, "--milliseconds", "20"])
    assert not (tmp_path / "timed").exists()
    _, cost = dial.main([*words, "--milliseconds", "8"])
    assert re.search(r"[78]\.\d\d ms per image in batches of 2 .* the clock says 8.00", capsys.readouterr().out)
    assert LatencyTable.load(tmp_path / "timed" / "latency.json") == faked["latencies"]
    timed = DynViTForImageClassification.from_pretrained(tmp_path / "timed")
    assert timed.config.budget == pytest.approx(cost) and 0.3 < cost < 1.0
    assert not any("prepack" in name for name in timed.state_dict())


def test_aims_of_the_dial_are_one_at_a_time(place, tmp_path):
    words = ["--model", place.vit, "--data_files", *place.files, "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="kernels change times"):
        dial.main([*words, "--budget", "0.5", "--kernels", "true"])
    for aims in ([], ["--budget", "0.5", "--budgets", "0.5", "0.6"], ["--budget", "0.5", "--milliseconds", "8"]):
        with pytest.raises(ValueError, match="one of --budget, --budgets and --milliseconds are needed"):
            dial.main([*words, *aims])
    with pytest.raises(ValueError, match="milliseconds must be positive and finite, got -1.0"):
        dial.main([*words, "--milliseconds", "-1"])
    with pytest.raises(ValueError, match="need gates that learn: others keep the cost that they have"):
        dial.main([*words, "--gates", "[{gate: tome, merged: 2}]", "--budgets", "0.5", "0.6"])


def test_a_time_is_spent_at_the_size_of_images_that_is_nearest_to_the_dense_model(
    place, tmp_path, monkeypatch, capsys
):
    """The clock is a fake that takes the square of the tokens, and the table one that knows no time that gates can give."""
    tokens = {None: 17, 24: 10, 16: 5}

    def clock(models, batches):
        gated, plain = {None: 1.1, 24: 1.2}, {size: count**2 / 100 for size, count in tokens.items()}
        return {place: (gated if place.gates else plain)[place.resolution] for place in models}

    monkeypatch.setattr(timed_resolution, "clocked_together", clock)

    def timed(model, batches, milliseconds, batch_size):
        if model.config.resolution == 16:
            raise OutOfReach("gates take too long")
        # 24 px: in time when it was calibrated, not beside the others.
        return TimedCalibration(0.0, 0.6, 1.1, 1.1, 1.1, LatencyTable(**TABLE), 1.0)

    monkeypatch.setattr(calibration, "calibrate_milliseconds", timed)
    words = ["--model", place.vit, "--data_files", *place.files, "--gates", "[{gate: patch, drop: true, novelty: 8}]"]
    words += ["--resolution", "auto", "--batch_size", "2"]
    dial.main([*words, "--milliseconds", "1.1", "--output", str(tmp_path / "gated")])
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if " nats from" in line] == [
        "images as they come",
        "24 px, without gates",
    ]
    # Fake gates are left open: with all of the images they are the dense model.
    assert "images as they come: 0.000 nats" in said and (tmp_path / "gated" / "latency.json").exists()
    chosen = DynViTForImageClassification.from_pretrained(tmp_path / "gated")
    assert chosen.config.resolution is None and chosen.learned_gates()

    def never(model, batches, milliseconds, batch_size):
        raise OutOfReach("gates take too long")

    monkeypatch.setattr(calibration, "calibrate_milliseconds", never)
    dial.main([*words, "--milliseconds", "1.1", "--output", str(tmp_path / "plain")])
    plain = DynViTForImageClassification.from_pretrained(tmp_path / "plain")
    assert plain.config.resolution == 24 and not plain.config.gates and plain.config.budget < 0.7
    assert not (tmp_path / "plain" / "latency.json").exists()
    with pytest.raises(
        ValueError, match="0.1 ms are out of reach, down to images of 16 px: images as they come: gates take"
    ):
        dial.main([*words, "--milliseconds", "0.1", "--output", str(tmp_path / "none")])


def test_heads_and_sublayers_are_fitted_for_one_budget_and_stay_open_for_several(place, tmp_path, capsys):
    words = ["--model", place.vit, "--data_files", *place.files, "--images", "16", "--gates"]
    words += ["[{gate: merge, layers: [0, 1]}, {gate: sublayer, layers: [1]}]"]
    shift, cost = dial.main([*words, "--budget", "0.8", "--output", str(tmp_path / "one")])
    said = capsys.readouterr().out
    assert shift is None and cost == pytest.approx(0.8, abs=0.05) and "each kind of gates shifted by itself" in said
    assert said.count("by heads and sub-layers: ") == 4  # the shares that were tried
    dial.main([*words, "--budgets", "0.9", "0.8", "--output", str(tmp_path / "several")])
    assert "heads and sub-layers stay open" in capsys.readouterr().out
    several = DynViTForImageClassification.from_pretrained(tmp_path / "several")
    with torch.no_grad():
        decisions = several(torch.randn(4, 3, 32, 32), budget=0.8).decisions
    assert decisions[1].sublayers.all() and [budget for budget, _ in several.config.budget_shifts] == [0.8, 0.9]


def test_a_budget_that_nothing_can_meet_is_refused_or_said(place, tmp_path, capsys):
    words = ["--data_files", *place.files, "--images", "6", "--output"]
    with pytest.raises(ValueError, match="has no gates, and costs what it costs: give --gates merge"):
        dial.main(["--model", place.vit, "--budget", "0.5", *words, str(tmp_path / "none")])
    for gates, said in (("{gate: merge}", "or a list such as"), ("[{gate: merge", "is no YAML")):
        with pytest.raises(ValueError, match=f"gates .*{said}"):
            dial.main(["--model", place.vit, "--gates", gates, "--budget", "0.5", *words, str(tmp_path / "none")])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        dial.main(["--model", place.vit, "--gates", "evit", "--budget", "0.5", *words, str(tmp_path / "file")])
    _, cost = dial.main(["--model", place.vit, "--gates", "evit", "--budget", "0.3", *words, str(tmp_path / "rule")])
    assert f"no threshold is there to bring the cost to 0.3: it is {cost:.3f}" in capsys.readouterr().out
    assert DynViTForImageClassification.from_pretrained(tmp_path / "rule").config.budget == pytest.approx(cost)
    plain = ["--model", place.vit, "--gates", "none", "--resolution", "auto", "--budget", "0.5"]
    _, cost = dial.main([*plain, *words, str(tmp_path / "plain")])
    model = DynViTForImageClassification.from_pretrained(tmp_path / "plain")
    assert model.config.resolution == 24 and model.config.budget == pytest.approx(cost)


@pytest.mark.parametrize("changed", [{"layer_mask": [[True, True], [True, False]]}, {"resolution": 16}])
def test_fresh_gates_do_not_take_away_what_a_model_has(place, tmp_path, changed):
    model = DynViTForImageClassification.from_vit(place.vit)
    for name, value in changed.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path / "masked")
    AutoImageProcessor.from_pretrained(place.vit).save_pretrained(tmp_path / "masked")
    words = ["--model", str(tmp_path / "masked"), "--data_files", *place.files, "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=f"has {next(iter(changed))}, which fresh gates would lose"):
        dial.main([*words, "--gates", "merge", "--budget", "0.9"])


def test_a_backbone_without_a_classifier_is_refused(place, tmp_path):
    ViTModel.from_pretrained(place.vit).save_pretrained(tmp_path / "bare")
    AutoImageProcessor.from_pretrained(place.vit).save_pretrained(tmp_path / "bare")
    words = ["--data_files", *place.files, "--model", str(tmp_path / "bare")]
    for call in (
        lambda: dial.main([*words, "--output", str(tmp_path / "out"), "--gates", "merge", "--budget", "0.9"]),
        lambda: evaluate.main([*words, "--json", str(tmp_path / "out.json")]),
    ):
        with pytest.raises(ValueError, match=r"bare \(ViTModel\) has no classifier"):
            call()


def test_the_nearest_budget_of_a_cascade_is_kept(place, tmp_path, capsys):
    output, looks = tmp_path / "out", ["--cascade", "16@0.25", "32@0.9"]
    words = ["--model", place.vit, "--data_files", *place.files, "--output", str(output), *looks, "--gates", "merge"]
    _, cost = dial.main([*words, "--budget", "0.25", "--images", "24"])
    budget = DynViTForImageClassification.from_pretrained(output).config.budget
    assert budget == pytest.approx(cost, abs=0.05) and budget >= 0.22


@pytest.mark.parametrize("names", [["PetNet"], None])
def test_a_classifier_is_known_by_its_weights_whatever_its_class_is_called(place, tmp_path, names):
    check_classifier(place.vit, {"architectures": names})
    ViTModel.from_pretrained(place.vit).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no classifier"):
        check_classifier(tmp_path, {"architectures": names})
    with pytest.raises(ValueError, match="has no classifier"):
        check_classifier("me/on-the-hub", {"architectures": ["ViTModel"]})
    check_classifier("me/on-the-hub", {"architectures": names})
