"""recipes/gpu.sh: valid bash that refuses to begin without a GPU, and whose every command its recipe understands."""

import json
import os
import stat
import subprocess
import sys

import pytest
from places import RECIPES, ROOT
from recipe_place import evaluate, step_time
from transformers import AutoImageProcessor, HfArgumentParser

from hf_dynvit.benchmark import BenchmarkArguments
from hf_dynvit.data import DataArguments
from hf_dynvit.measure import forwards
from hf_dynvit.model.convert import load_vit
from hf_dynvit.settings import parse_settings
from hf_dynvit.training import recipe_words
from hf_dynvit.training.arguments import DynViTTrainingArguments
from hf_dynvit.training.starting_model import ModelArguments


SCRIPT = RECIPES / "gpu.sh"
# Notes what it is called with, and leaves the files that it is told to write; everything fails that holds `$FAILS`.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps(words), file=notes)
if "--json" in words:
    open(words[words.index("--json") + 1], "w").close()
sys.exit(any(os.environ.get("FAILS", "nothing") in word for word in words) * 3)
"""


def bash(*words, folder=ROOT, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(["bash", SCRIPT, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def stand_in(tmp_path):
    """Words -> what the script said, and the commands that it would have run where there is a GPU."""
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(*words, **environment):
        done = bash(str(tmp_path / "out"), *words, PYTHON=str(python), NOTES=str(notes), **environment)
        return done, [json.loads(line) for line in notes.read_text().splitlines()]

    return run


def test_it_is_valid_bash_and_refuses_a_machine_without_a_gpu_before_it_writes(tmp_path):
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    done = bash(str(tmp_path / "out"))
    assert done.returncode == 2 and "sees no CUDA GPU" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give OUT, or OUT MODEL IMAGES; got 0 words"),
        (["out", "model"], "got 2 words: out model"),
        (["recipes"], "recipes is not empty: give a new folder"),
        (["out", "model", "nowhere.parquet"], "there is no file of images nowhere.parquet"),
    ],
)
def test_what_it_cannot_do_is_said_at_once(words, message):
    done = bash(*words)
    assert done.returncode == 2 and message in done.stderr


def test_it_belongs_into_the_projects_folder(tmp_path):
    assert "run it in the project's folder" in bash("out", folder=tmp_path).stderr


def understood(words):
    """Parse a command as what it calls would; returns the name of that, and its arguments by name."""
    if words[:2] == ["-m", "hf_dynvit.benchmark"]:
        (args,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(words[2:])
        args.gate_sets()
        return "benchmark", args
    name, words = words[0].removeprefix("recipes/"), words[1:]
    if name == "evaluate.py":
        return name, parse_settings(words, evaluate.EvaluateArguments, DataArguments)[0]
    if name == "step_time.py":
        return name, parse_settings(words, step_time.StepArguments)[0]
    assert name == "train.py"
    words += ["--use_cpu", "true"]  # where there is no GPU, transformers refuses bf16 otherwise
    kinds = ModelArguments, DataArguments, DynViTTrainingArguments
    defaults = {"defaults": recipe_words.preset_defaults, "set_aside": recipe_words.faithful_set_aside}
    return name, parse_settings(words, *kinds, **defaults)[2]


def test_every_command_is_understood_and_every_file_goes_to_the_report(stand_in, tmp_path, monkeypatch):
    images = tmp_path / "images.parquet"
    images.touch()
    done, commands = stand_in("model", str(images), "--match_labels", "true")
    assert done.returncode == 0, done.stderr
    (_, *parts, last), out = commands, tmp_path / "out"
    (making,) = [words for words in parts if words[0] == "-c"]
    found = [understood(words) for words in parts if words[0] != "-c"]
    assert {name for name, _ in found} == {"benchmark", "evaluate.py", "step_time.py", "train.py"}
    measured = [args for name, args in found if name != "train.py"]
    assert all(args.device == "cuda" for args in measured)
    speeds = [args for name, args in found if name == "benchmark"]
    assert {size for args in speeds for size in args.sizes} == set(forwards.SIZES)
    assert {dtype for args in speeds for dtype in args.dtypes} == {"float32", "bfloat16"}
    files = sorted(args.json for args in measured)
    assert len(set(files)) == len(files) and last == ["recipes/report.py", *files]
    (evaluated,) = [words for words in parts if words[0] == "recipes/evaluate.py"]
    assert evaluated[-2:] == ["--match_labels", "true"] and (out / "tables.md").exists()

    monkeypatch.setitem(forwards.SIZES, "small", (64, 1))
    monkeypatch.setattr(sys, "argv", making[1:])
    exec(making[1], {})  # noqa: S102
    vit = load_vit(making[2])
    assert making[2] == str(out / "vit_small") and vit.config.num_labels == 1000
    assert AutoImageProcessor.from_pretrained(making[2]).size == {"height": 224, "width": 224}


def test_a_part_that_fails_is_named_and_the_others_are_reported(stand_in, tmp_path):
    done, commands = stand_in(FAILS="step_time")
    assert done.returncode == 2
    assert "failed: training steps, gates block training steps, gates patch+sublayer" in done.stderr
    assert commands[-1][0] == "recipes/report.py" and (tmp_path / "out" / "tables.md").exists()
    assert not any("recipes/evaluate.py" in words or "recipes/train.py" in words for words in commands)
