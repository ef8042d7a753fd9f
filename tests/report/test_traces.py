"""Claims about what is published: it does not tell where on which machine somebody keeps files."""

import getpass
import json
import platform
import socket
from pathlib import Path

import pytest
from recipe_place import publish_in, report

from hf_dynvit.report.traces import refuse_names, with_relative_paths


FOLDER = Path("/home/ann/my project")


@pytest.mark.parametrize(
    ("text", "relative"),
    [
        ("/home/ann/my project/outputs/x", "outputs/x"),
        ("train=/home/ann/my project/data/t.parquet", "train=data/t.parquet"),
        ("python '/home/ann/my project/recipes/a.py' --b /c", None),
        ("python '/home/ann/my project/recipes/a.py' '--b=/home/ann/my project/c'", "python 'recipes/a.py' '--b=c'"),
        ("{'file': '/home/ann/my project/a.json', 'split': False}", "{'file': 'a.json', 'split': False}"),
        ("[/home/ann/my project/a,/home/ann/my project/b]", "[a,b]"),
        ("/home/ann/my projects/x", None),
        ("/home/ann/my project/../x", None),
        ("/home/ann", None),
        ("train=/data/t.parquet", None),
        ("python recipes/a.py --gates '[{gate: mine, file: /data/w.pt}]'", None),
        ("../data/t.parquet", None),
        ("outputs/../../x", None),
        ("--out=~/x", None),
        ("~ann/x", None),
        ("C:\\Users\\ann", None),
        ("file:///data/x", None),
        ("OSError: [Errno 2] No such file: '/opt/x'", None),
    ],
)
def test_paths_below_the_working_folder_become_relative_and_others_are_refused(text, relative):
    content = {"settings": {"data": [0.5, text]}, "seed": 0}
    if relative is None:
        with pytest.raises(
            ValueError, match=r"made.json: settings.data\[1\] leads out of the working folder /home/ann"
        ):
            with_relative_paths(content, "made.json", FOLDER)
    else:
        expected = {"settings": {"data": [0.5, relative]}, "seed": 0}
        assert with_relative_paths(content, "made.json", FOLDER) == expected


@pytest.mark.parametrize(
    "text",
    [
        "google/vit-base-patch16-224",
        "data/tiny_imagenet_200/train.parquet",
        "https://etd.aau.edu.et/items/34d0d3ef",
        "Intel(R) Xeon(R) CPU @ 2.20GHz / 2",
        "--hub_token ... --token=... -v",
        "images/s, 3 / 4 and a/b/c",
        "./outputs/x",
    ],
)
def test_what_leads_nowhere_else_stays(text):
    assert with_relative_paths([text, None, 1], "made.json", FOLDER) == [text, None, 1]


@pytest.fixture
def names(monkeypatch):
    """A machine and a user with names of their own."""
    for module in (socket, platform):
        monkeypatch.setattr(module, "gethostname" if module is socket else "node", lambda: "annsbox")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "ann")


def test_the_names_of_machine_and_user_are_refused(names):
    refuse_names({"device": "AMD EPYC", "command": "python annual.py --hub_model_id ann/vit"}, "made.json")
    for text, whose in (("run of ann", "user, 'ann'"), ("runs@annsbox:8080", "machine, 'annsbox'")):
        with pytest.raises(ValueError, match=f"made.json: settings.run_name has the name of this {whose}"):
            refuse_names({"settings": {"run_name": text}}, "made.json")


def test_a_user_without_a_name_is_none(monkeypatch):
    def nobody():
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nobody)
    refuse_names(["a"], "made.json")


def test_a_training_that_was_given_absolute_paths_is_stored_without_them(place, names, monkeypatch):
    place.train("named", "--max_steps", "1")
    file = place.folder / "named" / "results.json"
    content = json.loads(file.read_text())
    assert str(place.folder) in file.read_text()
    for text in ("annsbox", '"ann"'):
        assert text not in file.read_text()
    file.write_text(json.dumps(content | {"command": f"python recipes/train.py {place.folder}/recipe.yaml"}))
    monkeypatch.chdir(place.folder)
    publish_in(place.folder, monkeypatch)
    report.main(["--write", str(file)])
    kept = (report.STORED / "named.json").read_text()
    assert str(place.folder) not in kept and '"output_dir":"named"' in kept
    assert json.loads(kept)["command"] == "python recipes/train.py recipe.yaml"
