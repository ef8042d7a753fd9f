"""The notebooks run from the first cell to the last, and are kept without outputs."""

import os
import re
from ast import literal_eval

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_quickstart_runs_and_both_layouts_agree(tmp_path, monkeypatch):
    shown = executed("quickstart", tmp_path, monkeypatch)
    assert value(shown["before"]) < 1e-4  # fresh gates change nothing
    difference = next(outputs for line, outputs in shown.items() if line.startswith("difference"))
    assert value(difference) < 1e-4  # masked and packed agree
    assert text(shown["again"]) == "True"  # the loaded model is the saved one
    assert (tmp_path / "decisions.png").stat().st_size and (tmp_path / "usage.png").stat().st_size


@pytest.mark.slow
def test_the_notebook_on_agents_runs_with_an_agent_of_its_own(tmp_path, monkeypatch):
    results = literal_eval(text(executed("agents", tmp_path, monkeypatch)["results"]))  # the last time it is shown
    assert list(results) == ["none", "random", "agentvit-plus", "contrast"]
    assert all(row["seconds"] > 0 and 0 <= row["eval_accuracy"] <= 1 for row in results.values())
    assert "eval_chosen_accuracy" in results["agentvit-plus"]
    assert (tmp_path / "kept.png").stat().st_size and (tmp_path / "keep_map.png").stat().st_size


@pytest.mark.slow
def test_the_notebook_on_methods_compares_a_scorer_of_its_own(tmp_path, monkeypatch):
    shown = executed("methods", tmp_path, monkeypatch)
    found = literal_eval(next(text(outputs) for line, outputs in shown.items() if line.startswith("[(cell.method")))
    assert [method for method, *_ in found[:5]] == ["edges", "random-merge", "evit", "tome", "merge"]
    assert all(0 <= accuracy <= 1 and abs(cost - budget) < 0.15 for _, budget, accuracy, cost in found)
    assert (tmp_path / "board.png").stat().st_size


def executed(name, folder, monkeypatch):
    """Last line of each code cell -> its outputs, of a notebook that ran in `folder` with few steps."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if "STEPS = " in cell.source)
    setup.source, shortened = re.subn(r"STEPS = \d+", "STEPS = 5", setup.source)
    assert shortened == 1
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return {cell.source.splitlines()[-1]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(outputs):
    return next(output.data["text/plain"] for output in outputs if output.output_type == "execute_result")


def value(outputs):
    return float(re.search(r"tensor\(([\d.e+-]+)\)", text(outputs))[1])
