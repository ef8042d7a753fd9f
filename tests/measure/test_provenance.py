"""Claims about the context that travels with a number."""

import json
import os
import subprocess

import pytest
import torch

from hf_dynvit.measure import provenance
from hf_dynvit.measure.provenance import command_line, commit, device_name, instructions, measured_on, versions


GIT_USER = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", *arguments], cwd=tmp_path, check=True, capture_output=True, env={**os.environ, **GIT_USER}
        )

    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_it_survives_json_and_names_what_ran():
    context = measured_on(torch.device("cpu"), torch.bfloat16, seed=7)
    assert json.loads(json.dumps(context)) == context
    assert context["dtype"] == "bfloat16"
    assert context["seed"] == 7
    assert context["threads"] == torch.get_num_threads()
    assert context["device"]


def test_versions_are_those_of_the_imported_packages():
    assert versions()["torch"] == torch.__version__


def test_an_unknown_device_is_refused():
    with pytest.raises(RuntimeError, match="abacus"):
        device_name("abacus")


def test_commit_says_when_the_code_differs_from_it(repository):
    clean = commit(repository)
    assert len(clean) >= 7 and "+" not in clean
    (repository / "notes.txt").write_text("not code")
    assert commit(repository) == clean
    (repository / "code.py").write_text("x = 2\n")
    assert commit(repository) == f"{clean}+changes"


def test_a_measurement_names_the_code_that_it_began_with(repository, monkeypatch):
    monkeypatch.setattr(provenance, "SOURCE_TREE", repository)
    provenance.commit_of_code.cache_clear()
    try:
        began = measured_on("cpu", "float32")["commit"]
        (repository / "code.py").write_text("x = 2\n")
        assert measured_on("cpu", "float32")["commit"] == began == commit(repository).removesuffix("+changes")
    finally:
        provenance.commit_of_code.cache_clear()


def test_code_that_is_not_committed_yet_is_a_change(repository):
    clean = commit(repository)
    (repository / "new.py").write_text("")
    assert commit(repository) == f"{clean}+changes"


def test_an_installed_package_does_not_report_the_commit_of_the_folder_around_it(repository):
    (repository / "site-packages").mkdir()
    assert commit(repository / "site-packages") is None


def test_outside_git_there_is_no_commit(tmp_path):
    assert commit(tmp_path) is None


def test_the_command_can_be_typed_again_and_holds_no_token():
    words = [
        "/home/me/.venv/bin/python3",
        "recipes/train.py",
        "a file.yaml",
        "--hub_token",
        "hf_x",
        "--token=hf_y",
        "-v",
    ]
    assert command_line(words) == "python recipes/train.py 'a file.yaml' --hub_token ... --token=... -v"


def test_the_instructions_of_the_processor_are_named(monkeypatch):
    assert measured_on("cpu", torch.float32)["instructions"] == instructions("cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert instructions("cpu").startswith("AVX-512") and instructions("meta") is None
