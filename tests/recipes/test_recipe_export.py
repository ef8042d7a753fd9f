"""The export recipe: an exported folder that agrees with PyTorch, and what it needs said before."""

import importlib.util
from dataclasses import replace

import pytest
from recipe_place import deploy, report

from hf_dynvit.report import read


pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs hf_dynvit[deploy]",
)


def test_a_plain_vit_is_exported_and_compared(place):
    output = place.folder / "exported"
    words = ["--model", place.vit, "--format", "onnx", "--batch", "dynamic", "--output", str(output)]
    found = deploy.main([*words, "--data_files", *place.files, "--check_images", "3", "--seconds", "0.1"])
    assert found.images == 3 and found.same == found.top1 == 1.0 and found.largest < 1e-4 and found.cost == 1.0
    assert (
        f"mean cost 1.000. The same decisions for 100.0%; their largest difference of logits is {found.largest:.2g}."
        in (output / "README.md").read_text()
    )
    assert "An image alone takes" in (output / "README.md").read_text()
    made = read(output / "deployment.json")
    assert made.ms.keys() == {"exported", "dense", "packed"} and min(made.ms.values()) > 0 and made.rounds >= 9
    assert made.images == 3 and made.looks == 1.0
    assert "### Deployed" in report.main([str(output / "deployment.json")])
    slow, fast = (replace(made, ms={"exported": 2.0, "dense": dense, "packed": 1.0}) for dense in (3.0, 5.0))
    front = report.render_front([slow, fast, replace(slow, merges="fixed"), replace(made, ms={})])
    assert front.count("| 1.50× |") == front.count("| 2.50× |") == 1 and "batch dynamic, fixed merges |" in front
    with pytest.raises(ValueError, match="kernels are for what is timed"):
        deploy.main([*words, "--kernels", "true"])
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
