"""The export recipe: an exported folder that agrees with PyTorch, and what it needs said before."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from recipe_place import deploy, report

from hf_dynvit.deploy import timing
from hf_dynvit.measure.timing import Timing
from hf_dynvit.report import read


pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs hf_dynvit[deploy]",
)


def test_a_plain_vit_is_exported_and_compared(place, monkeypatch):
    output, planned, load = place.folder / "exported", set(), timing.DynViTRuntime.from_pretrained

    def loaded(folder, threads=None, streams=1, images=None):
        planned.add((streams, images))
        return load(folder, threads, streams, images=images)

    monkeypatch.setattr(timing.DynViTRuntime, "from_pretrained", loaded)
    words = ["--model", place.vit, "--format", "onnx", "--batch", "dynamic", "--output", str(output)]
    found = deploy.main(
        [*words, "--data_files", *place.files, "--check_images", "5", "--seconds", "0.1", "--batch_sizes", "1", "2"]
    )
    assert found.images == 5 and found.same == found.top1 == 1.0 and found.largest < 1e-4 and found.cost == 1.0
    said = (output / "README.md").read_text()
    assert f"The same decisions for 100.0%; their largest difference of logits is {found.largest:.2g}." in said
    assert "mean cost 1.000. Top-1 " in said and "In batches of 2 an image takes" in said
    made = read(output / "deployment.json")
    assert [took.batch_size for took in made.timings] == [1, 2]
    for took, batches in zip(made.timings, (5, 2), strict=True):  # of five images two batches are full
        assert took.rounds >= 3 * batches and took.rounds % batches == 0
    assert all(min(took.exported, took.dense, took.packed) > 0 for took in made.timings)
    threads = torch.get_num_threads()
    assert planned == {(1, None), (1, 1), (1, 2)} | ({(2, 1)} if threads > 1 else set())  # streams, and images of each
    assert made.images == 5 and made.looks == 1.0 and 0 <= made.accuracy == made.accuracy_packed <= 1
    one = [*words[:4], "--batch", "one", "--output", str(place.folder / "one_by_one"), "--data_files", *place.files]
    deploy.main([*one, "--check_images", "2", "--seconds", "0.1", "--batch_sizes", "2"])
    (took,) = read(place.folder / "one_by_one" / "deployment.json").timings
    assert took.images == took.batch_size == 2 and took.cost == 1.0 and min(took.dense, took.exported) > 0
    assert "### Deployed" in report.main([str(output / "deployment.json")])
    slow, fast = (replace(made, timings=[Timing(1, 5, 1.0, 2.0, dense, 1.0, 9)]) for dense in (3.0, 5.0))
    others = [
        replace(slow, merges="fixed"),
        replace(made, timings=[]),
        replace(fast, timings=[Timing(8, 8, 1.0, 1.0, 9.0, 1.0, 9)]),
    ]
    others.append(replace(made, timings=[Timing(1, 5, 1.0, 1.0, 99.0, 1.0, 9)], accuracy=0.0))
    front = report.render_clock([slow, fast, *others])
    assert (
        front.count("| 1.50× |") == front.count("| 2.50× |") == 1
        and "99.00×" not in front
        and "batch dynamic, fixed merges |" in front
    )
    with pytest.raises(ValueError, match="kernels are for what is timed"):
        deploy.main([*words, "--kernels", "true"])
    with pytest.raises(ValueError, match=r"batch_sizes must be in 1\.\.3, .* got \[4\]"):
        deploy.main([*words, "--check_images", "3", "--seconds", "1", "--batch_sizes", "4"])
    with pytest.raises(ValueError, match=r"batch_sizes \[1, 8\] are to be timed, and need seconds"):
        deploy.main([*words, "--check_images", "9", "--batch_sizes", "1", "8"])
    with pytest.raises(ValueError, match="need check_images"):
        deploy.main([*words, "--seconds", "1"])
    with pytest.raises(ValueError, match="is not empty"):
        deploy.main(words)


def test_a_recipe_without_its_settings_says_which(place):
    with pytest.raises(ValueError, match="--model and --output are needed"):
        deploy.main([])
    with pytest.raises(ValueError, match="give either dataset_name or data_files"):
        deploy.main(["--model", place.vit, "--output", str(place.folder / "never"), "--check_images", "2"])
    with pytest.raises(ValueError, match="format must be one of"):
        deploy.main(["--model", place.vit, "--output", str(place.folder / "never"), "--format", "coreml"])
