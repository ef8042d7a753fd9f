"""The built package is whole: a wheel's files alone train, save and describe a model."""

import subprocess
import sys
import zipfile

import pytest
from places import ROOT


TRAIN = """
import sys
from pathlib import Path
import torch
from transformers import ViTConfig, ViTForImageClassification
import hf_dynvit
from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.report.model_card import template_path

assert Path(hf_dynvit.__file__).is_relative_to(sys.argv[1]), hf_dynvit.__file__
assert template_path().is_relative_to(sys.argv[1])
sizes = dict(image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_labels=2)
vit = ViTForImageClassification(ViTConfig(num_hidden_layers=2, **sizes))
model = DynViTForImageClassification.from_vit(vit, gates=[{"gate": "patch"}], budget=0.7)
images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i in range(8)]
args = DynViTTrainingArguments(sys.argv[2], max_steps=2, use_cpu=True, report_to="none", save_strategy="no")
trainer = DynViTTrainer(model=model, args=args, train_dataset=images, calibration_dataset=images)
trainer.train()
trainer.save_model()
"""


@pytest.mark.slow
def test_a_wheel_trains_and_saves(tmp_path):
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hf_dynvit", "setup.py", "pyproject.toml", "README.md", "LICENSE", "model_card_template.md"):
        (source / name).symlink_to(ROOT / name)  # what a build leaves beside the source stays in this folder
    subprocess.run([sys.executable, *words, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    packed = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed/hf_dynvit").rglob("*.py")}
    assert packed == {path.relative_to(ROOT) for path in (ROOT / "hf_dynvit").rglob("*.py")}
    code = f"import sys; sys.path.insert(0, sys.argv[1])\n{TRAIN}"
    words = [sys.executable, "-c", code, str(tmp_path / "installed"), str(tmp_path / "model")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model" / "modeling_dynvit.py").is_file()
