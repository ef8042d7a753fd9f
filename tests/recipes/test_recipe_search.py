"""The recipe search.py: masks are found, written and picked, and the models under them go on."""

import json
import shutil

import pytest
import torch
from image_files import write_parquet
from recipe_place import evaluate, find
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from hf_dynvit import DynViTForImageClassification, fit_bypass
from hf_dynvit.training.calibration import cost_range


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


def test_a_checkpoint_of_16_bits_is_scored_in_the_precision_that_is_named(place, tmp_path):
    model = tmp_path / "half"
    shutil.copytree(place.vit, model)
    ViTForImageClassification.from_pretrained(place.vit, dtype=torch.bfloat16).save_pretrained(model)
    assert find(place, tmp_path / "out", model)["dtype"] == "float32"
    kinds = {weight.dtype for weight in load_file(tmp_path / "out" / "picked" / "model.safetensors").values()}
    assert kinds == {torch.float32}


def test_the_joint_search_scores_the_reward_of_the_policy(place, skipping, tmp_path):
    results = find(place, tmp_path, skipping[1], "--objectives", "reward+layers", "--price", "0.3")
    for point in results["front"]:
        assert point["reward"] == pytest.approx(point["accuracy"] - 0.3 * point["cost"], abs=1e-5)


def test_the_joint_search_pays_what_the_policy_was_paid_in_training(place, skipping, tmp_path):
    trained, folder = skipping
    assert trained["price"] is not None and trained["price"] != 0.0  # it followed the budget
    words = ["--objectives", "reward+layers"]
    results = find(place, tmp_path / "a", folder, *words)
    assert results["reward"]["price"] == trained["price"] and results["reward"]["kind"] == "correct"
    assert results["reward"]["source"] == "reward: training, price: training, penalty: default"
    for point in results["front"]:
        assert point["reward"] == pytest.approx(point["accuracy"] - trained["price"] * point["cost"], abs=1e-5)

    # The same weights, as if blocks had been weighted by depth and wrong predictions punished.
    shutil.copytree(folder, tmp_path / "model")
    training = {**trained["settings"]["training"], "reward": "blockdrop", "penalty": 0.5, "cost_weights": "depth"}
    settings = {**trained["settings"], "training": training}
    (tmp_path / "model" / "results.json").write_text(json.dumps({**trained, "settings": settings}))
    results = find(place, tmp_path / "b", tmp_path / "model", *words)
    assert [results["reward"][name] for name in ("kind", "penalty", "cost_weights")] == ["blockdrop", 0.5, "depth"]
    assert all(point["reward"] >= -0.5 * point["error"] - 1e-6 for point in results["front"])
    assert find(place, tmp_path / "c", tmp_path / "model", *words, "--reward", "probability")["reward"]["price"] == 1.0


def test_scores_of_other_images_weights_or_options_are_refused_by_name(place, tmp_path):
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    shutil.copytree(place.vit, model)
    data.mkdir()
    words = ["--trust_label_order", "true", "--data_files", write_parquet(data)[0]]
    first = find(place, out, model, *words)
    assert find(place, out, model, *words)["front"] == first["front"]
    with pytest.raises(ValueError, match="another search .*data.validation_fraction 0.5 there, 0.4 now"):
        find(place, out, model, *words, "--validation_fraction", "0.4")
    with pytest.raises(ValueError, match="another search .*data.data_files"):
        find(place, out, model)
    with pytest.raises(ValueError, match="another search .*reward.price 1.0 there, 0.5 now"):
        find(place, out, model, *words, "--price", "0.5")
    write_parquet(data, grey=range(24))  # other images in a file of that name
    with pytest.raises(ValueError, match="another search .*pixels"):
        find(place, out, model, *words)
    write_parquet(data)
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"] += 1e-3  # trained again, into the same folder
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another search \(weights '\w+' there, '\w+' now\)"):
        find(place, out, model, *words)


def test_sub_layers_of_a_deep_policy_are_searched_by_nsga2_with_progress(place, tmp_path, capsys):
    torch.manual_seed(0)
    model = DynViTForImageClassification.from_vit(place.deep_vit, gates="layerskip")
    for gate in [gate for gates in model.gates for gate in gates.values()]:
        torch.nn.init.normal_(gate.score.weight)
    model.save_pretrained(tmp_path / "model")
    shutil.copy(f"{place.deep_vit}/preprocessor_config.json", tmp_path / "model")
    words = ["--granularity", "sublayer", "--objectives", "reward+layers", "--always_keep", "0"]
    results = find(place, tmp_path, tmp_path / "model", *words, "--population", "6", "--generations", "3")
    assert (results["method"], results["space"]) == ("nsga2", "22 bits, sublayer")
    stored = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert 6 < results["masks_scored"] == len(stored) <= 18
    assert any(bits[::2] != bits[1::2] for bits in stored)  # attention without its MLP, and the other way round
    progress = capsys.readouterr().err
    assert "masks:" in progress and "/18 [" in progress and "generation=3" in progress


def test_a_split_that_the_checkpoint_has_not_seen_can_be_halved(place, skipping, tmp_path, capsys):
    data = ["--data_files", *place.files, "--images", "12"]
    trained = find(place, tmp_path / "a", skipping[1], *data)
    assert trained["split"] == "held out of train" and trained["dataset"] == place.folder.name
    # In the YAML of `place` nothing is held out.
    assert "trained on all of them: its training held out a fraction of 0.0 by seed 1" in trained["images_from"]
    assert trained["images_from"] in capsys.readouterr().out
    words = [*data, "--validation_fraction", "0", "--search_split", "validation"]
    results = find(place, tmp_path / "b", skipping[1], *words)
    assert results["split"] == "halves of validation" and "none are of train" in results["images_from"]
    assert (results["images_to_choose_on"], results["images_reported_on"]) == (6, 6)
    assert json.loads((tmp_path / "b" / "front.json").read_text())["images_from"] == results["images_from"]
    rows = evaluate.open_models([str(skipping[1])], evaluate.ImageArguments(data_files=place.files))[0].images
    model = DynViTForImageClassification.from_pretrained(skipping[1]).eval()
    with torch.no_grad():
        right = [model(row["pixel_values"][None]).logits.argmax().item() == row["labels"] for row in rows]
    chosen_on = json.loads((tmp_path / "b" / "scores.json").read_text())["scores"]["11"]
    assert 6 * (chosen_on["accuracy"] + results["unmasked"]["accuracy"]) == pytest.approx(
        sum(right)
    )  # each image once


def test_a_plain_vit_can_be_searched_and_burnt_in(place, tmp_path):
    find(place, tmp_path, place.vit, "--burn_in", "true", "--min_accuracy", "0")
    assert len(ViTForImageClassification.from_pretrained(tmp_path / "burnt_in").vit.layers) == 1


def test_bypasses_are_searched_picked_and_not_burnt_in(place, tmp_path):
    model = DynViTForImageClassification.from_vit(place.vit, gates=[{"gate": "block", "bypass": "linear"}])
    fit_bypass(model, torch.rand(8, 3, *[model.config.image_size] * 2))
    model.save_pretrained(tmp_path / "model")
    shutil.copy(f"{place.vit}/preprocessor_config.json", tmp_path / "model")
    words = ["--policy", "process", "--min_accuracy", "0"]
    found = find(place, tmp_path / "out", tmp_path / "model", *words)["picked"]
    picked = DynViTForImageClassification.from_pretrained(tmp_path / "out" / "picked").eval()
    skipped = [layer for layer, pair in enumerate(found["layer_mask"]) if not any(pair)]
    assert skipped and [entry["layers"] for entry in picked.config.gates] == [[layer] for layer in skipped]
    pixels = torch.rand(2, 3, *[model.config.image_size] * 2)
    model.config.layer_mask = found["layer_mask"]
    with torch.no_grad():
        assert torch.equal(picked(pixels).logits, model.eval()(pixels, gating="open").logits)
    with pytest.raises(ValueError, match=r"burn_in leaves layers out, and bypasses \['linear'\] with them"):
        find(place, tmp_path / "burnt", tmp_path / "model", *words, "--burn_in", "true")


def test_a_searched_mask_outlives_the_tuning_of_a_model_without_gates(place, tmp_path):
    found = find(place, tmp_path, place.vit, "--min_accuracy", "0")["picked"]
    words = ["--model_name_or_path", str(tmp_path / "picked"), "--gates", "keep", "--max_steps", "1"]
    results = place.train("tuned_mask", *words, "--teacher", "none", "--evaluate_dense", "false")
    assert results["layer_mask"] == found["layer_mask"] and results["gates"] is None and results["cost"] < 1.0
    tuned = DynViTForImageClassification.from_pretrained(place.folder / "tuned_mask")
    assert tuned.config.layer_mask == found["layer_mask"]
    assert "trust_remote_code" in (place.folder / "tuned_mask" / "README.md").read_text()


def test_the_policy_is_tuned_under_the_mask_that_the_joint_search_picked(place, tmp_path):
    words = ["--model_name_or_path", place.deep_vit, "--max_steps", "2"]
    place.train("joint", *words, "--gates", "layerskip", "--gate_learning_rate", "0.1")
    words = ["--objectives", "reward+layers", "--method", "nsga2", "--population", "4", "--generations", "2"]
    words += ["--price", "1"]  # two steps of training leave a price that only the smallest mask is worth
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
    assert results["checkpoint"]["cost"] <= high + 1e-6 and results["dense"] is None
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
    rows = evaluate.open_models([str(skipping[1])], evaluate.ImageArguments(data_files=words[3:4]))[0].images
    with torch.no_grad():
        guesses = [model(row["pixel_values"][None], gating="open").logits.argmax().item() for row in rows]
    right = [guess == row["labels"] for guess, row in zip(guesses, rows, strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_model_with_a_mask_of_its_own_is_not_searched(place, tmp_path):
    model = DynViTForImageClassification.from_vit(place.vit)
    model.config.layer_mask = [[True, True], *[[False, False] for _ in model.gates[1:]]]
    model.save_pretrained(tmp_path / "picked")
    AutoImageProcessor.from_pretrained(place.vit).save_pretrained(tmp_path / "picked")
    with pytest.raises(ValueError, match="has a layer_mask already, which a search would not keep to"):
        find(place, tmp_path / "out", str(tmp_path / "picked"))


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
        (["--reward", "smile"], "reward must be one of .*'smile'"),
        (["--search_split", "test", "--validation_fraction", "0"], "there is no split 'test'"),
    ],
)
def test_bad_searches_are_refused_before_work(place, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        find(place, tmp_path / "out", place.vit, *words)
    assert not (tmp_path / "out").exists()
