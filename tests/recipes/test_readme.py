"""The README's code runs as it stands, with a tiny checkpoint and made-up photos in place of the named ones."""

import re

import pytest
from image_files import save_checkpoint, write_folders
from places import ROOT


README = ROOT / "README.md"
CHECKPOINT = "google/vit-base-patch16-224"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # the README does not ask for a CPU
def test_the_life_of_a_model_runs(tiny_vit, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert CHECKPOINT in code
    save_checkpoint(tmp_path / "checkpoint", tiny_vit(num_hidden_layers=12, num_labels=3))
    write_folders(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    scope = {}
    exec(code.replace(CHECKPOINT, "checkpoint"), scope)  # noqa: S102
    assert "eval_cost" in capsys.readouterr().out
    assert type(scope["model"]).__name__ == "DynViTForImageClassification"
    assert (tmp_path / "my-vit" / "modeling_dynvit.py").is_file()
