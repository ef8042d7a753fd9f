"""Claims about published results: each is kept as a file, the tables come from all of them, and nothing is half done."""

import json
import re

import pytest
from made_results import evaluation, policy, search, speed, training, written
from places import RECIPES, ROOT
from recipe_place import publish_in, report

from hf_dynvit.report.stored import stored
from hf_dynvit.report.traces import with_relative_paths


KEPT = sorted(report.STORED.glob("*.json"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with two READMEs and no stored results, all of it that `report` knows."""
    monkeypatch.chdir(tmp_path)
    publish_in(tmp_path, monkeypatch)
    return tmp_path


def out(name, results, file="results.json", **changes):
    """What a run left in the folder outputs/NAME; the file's path."""
    folder = report.README.parent / "outputs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return str(written(folder, results, file, **changes))


def fronts(results):
    """The parts of README.md."""
    return [part(results) for part in report.FRONTS.values()]


def everything():
    """All files of the project -> what they hold."""
    return {path: path.read_bytes() for path in report.README.parent.rglob("*") if path.is_file()}


def shown():
    """What the two READMEs show between their markers."""
    return [
        file.read_text().split(report.markers(part)[0])[1].split(report.markers(part)[1])[0].strip()
        for file, part in ((report.README, "results"), *((report.FRONT, part) for part in report.FRONTS))
    ]


def test_a_row_comes_and_goes_without_the_others_being_measured_again(project, capsys):
    report.main(["--write", out("first", policy(0, 0.51)), out("searched", search(), "front.json")])
    before = shown()
    again = report.main(["--write", out("", evaluation(accuracy=0.52), "eval_first.json")])
    names = [path.name for path in sorted(report.STORED.iterdir())]
    assert names == ["eval_first.json", "first.json", "searched.json"]
    results = [report.read(path) for path in sorted(report.STORED.iterdir())]
    assert shown() == [report.render(results), *fronts(results)] and again == shown()[0]
    assert "| 51.00 |" in again and "| 52.00 |" in again and "### Searched" in again
    assert capsys.readouterr().out.count("stored ") == 3
    (report.STORED / "eval_first.json").unlink()
    report.main(["--write"])
    assert shown() == before and "before\n" in report.README.read_text() and "after\n" in report.README.read_text()


def test_a_table_that_lost_its_last_row_goes(project):
    report.main(["--write", out("model", policy()), out("dense", training(gates=None))])
    (report.STORED / "model.json").unlink()
    report.main(["--write"])
    assert "### Trained" in shown()[0] and shown()[1:] == ["", ""]


def test_a_file_of_the_same_name_is_replaced_and_said(project, capsys):
    report.main(["--write", out("model", policy(0, 0.51))])
    report.main(["--write", out("model", policy(0, 0.52))])
    assert capsys.readouterr().out.splitlines()[-1] == f"replaced {report.STORED / 'model.json'}"
    assert "| 52.00 |" in shown()[0] and "| 51.00 |" not in shown()[0]
    outdated = report.STORED / "model.json"
    outdated.write_text(outdated.read_text().replace('"schema": 2', '"schema": 1'))
    report.main(["--write", out("model", policy(0, 0.53))])
    assert "| 53.00 |" in shown()[0]


def test_what_is_stored_says_what_the_file_says(project):
    file = out("model", policy())
    report.main(["--write", file])
    (kept,) = report.STORED.iterdir()
    content = json.loads((project / file).read_text())
    assert json.loads(kept.read_text()) == content
    assert kept.read_text().count("\n") >= len(content) + 2  # a line a field, and one a row
    before = everything()
    report.main(["--write", str(kept)])
    assert everything() == before


def test_rows_have_one_order_whatever_the_order_of_the_files(project):
    files = [out("b", policy(0, 0.51)), out("c", training(gates=None)), out("", evaluation(), "a.json")]
    files += [out("a_b", policy(0, 0.52, name="other")), out("d", search(), "front.json")]
    tables = report.main(files)
    assert tables == report.main(files[::-1]) and tables.index("| 52.00 |") < tables.index("| 51.00 |")
    for order in (files, files[::-1]):
        report.main(["--write", *order])
        assert shown()[0] == tables
    front = shown()[1:]
    for file in files[::-1]:
        report.main(["--write", file])
    assert shown() == [tables, *front]


def test_other_files_are_written_without_storing(project, capsys):
    other, file = project / "other.md", out("model", policy())
    other.write_text("".join(report.markers("results")))
    report.main([file])
    assert "### Trained" in capsys.readouterr().out
    for words in ([], ["--write"]):
        report.main([*words, "--readme", str(other), file])
    assert "### Trained" in other.read_text() and shown() == ["old"] * 3 and not report.STORED.exists()


def older(file="results.json"):
    return out("older", policy(), file, schema=1)


def unmarked():
    report.FRONT.write_text("no markers")
    return [out("new", policy(0, 0.6))]


def old_stored():
    (report.STORED / "older.json").write_text('{"kind": "training", "schema": 1}')
    return [out("new", policy(0, 0.6))]


REFUSED = {
    "older/results.json was written by another version": lambda: [older()],
    "stored/older.json was written by another version": old_stored,
    "damaged.json is damaged": lambda: [str(report.README.rename("damaged.json"))],
    "speed.json is against .* measure anew": lambda: [
        out("", evaluation(throughput=[speed(dense_ms={"sdpa": 1.0})]), "speed.json")
    ],
    "new.json and .*new/results.json would both be stored as new.json": lambda: [
        out("", evaluation(), "new.json"),
        out("new", policy()),
    ],
    "kept/front.json would replace .*kept.json, which is of kind 'training', not 'search'": lambda: [
        out("kept", search(), "front.json")
    ],
    "path/results.json: settings.training.output_dir leads out": lambda: [
        out("path", policy(options={"output_dir": "/elsewhere/x"}))
    ],
    "FRONT.md must contain": unmarked,
}


@pytest.mark.parametrize("message", REFUSED)
def test_nothing_is_stored_or_written_where_anything_is_refused(project, message):
    report.main(["--write", out("kept", policy(0, 0.5))])
    words = ["--write", out("good", policy(0, 0.7)), *REFUSED[message]()]
    before = everything()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        report.main(words)
    assert everything() == before


def test_tables_are_not_emptied_where_nothing_is_stored(project):
    with pytest.raises(ValueError, match="give the JSON files of train.py and evaluate.py; .*stored holds none"):
        report.main(["--write"])
    with pytest.raises(ValueError, match="give the JSON files of train.py and evaluate.py$"):
        report.main([])
    assert shown() == ["old"] * 3


@pytest.mark.skipif(not KEPT, reason="no results are stored yet")
def test_the_tables_of_the_readmes_are_what_the_stored_results_render():
    results = stored(report.STORED)
    for file, parts in (
        (report.README, {"results": report.render(results, report.STORED.name)}),
        (report.FRONT, {name: part(results) for name, part in report.FRONTS.items()}),
    ):
        assert file.read_text(encoding="utf-8") == report.between(file, **parts)


@pytest.mark.skipif(not KEPT, reason="no results are stored yet")
def test_plots_are_those_that_are_shown():
    pictures = re.findall(r"\]\((results/\w+\.png)\)", report.README.read_text(encoding="utf-8"))
    assert sorted(pictures) == sorted(f"results/{path.name}" for path in report.STORED.glob("*.png"))


@pytest.mark.skipif(not KEPT, reason="no results are stored yet")
@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_a_recipe_points_to_rows_that_are_there(recipe):
    told = [line.split(maxsplit=2)[2] for line in (RECIPES / recipe).read_text().splitlines() if "# Expect " in line]
    measured = any(f"recipes/{recipe}" in path.read_text() for path in KEPT)
    assert told == (["see recipes/README.md"] if measured else ["not measured yet"])


def test_stored_results_are_small_and_name_no_folders_outside():
    assert sum(path.stat().st_size for path in KEPT) < 830_000
    for path in KEPT:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert with_relative_paths(content, path, ROOT) == content
