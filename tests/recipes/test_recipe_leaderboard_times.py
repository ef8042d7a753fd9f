"""Times of a leaderboard: of models that were kept, on the machine and by the gates that they were measured with."""

import json
import shutil

import pytest
import torch
from made_results import speed
from models import images
from recipe_place import leaderboard, run_board

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.deploy import CompiledDynViT
from hf_dynvit.measure.compiled import Ahead
from hf_dynvit.measure.dense import AHEAD_EAGER
from hf_dynvit.model.prepack import is_prepacked
from hf_dynvit.report import leaderboard_cells, read


def refuse(*given):
    raise RuntimeError("trained or evaluated again")


class Found(list):
    """A list with lists beside it."""


@pytest.fixture
def clocked(monkeypatch):
    """The `Entrant`s that are timed, and the compiled dense model of each; what the clock says of them is others' claim."""
    found = Found()
    found.compiled, found.programs = [], []

    def time(entrant, size, seconds, compiled, program):
        found.append(entrant)
        found.compiled.append(compiled)
        found.programs.append(program)
        return speed(size, 1.5, seconds)

    monkeypatch.setattr(leaderboard_cells, "time_batches", time)
    return found


def sizes(cells):
    return [[speed["batch_size"] for speed in cell["throughput"]] for cell in cells]


def test_times_alone_are_added_where_a_method_is_missing_too(place, monkeypatch, clocked):
    run_board(place, "part", "--methods", "tome", "--budgets", "0.7", "--tune", "true")
    words = ["--methods", "tome", "evit", "--budgets", "0.8", "0.7", "--tune", "true", "--batch_sizes", "2"]
    monkeypatch.setattr(leaderboard, "tuned", refuse)
    after = run_board(place, "part", *words, "--complete", "true")["cells"]
    assert [(cell["method"], cell["budget"]) for cell in after] == [("tome", 0.7)] * 2 and sizes(after) == [[2], [2]]
    with pytest.raises(ValueError, match="there are no cells to complete in '.*none'"):
        run_board(place, "none", *words, "--complete", "true")


def test_what_was_tuned_beside_other_work_is_timed_later(place, monkeypatch, capsys, clocked):
    words = ["--methods", "tome", "--budgets", "0.7", "--tune", "true", "--seeds", "1", "2"]
    before = run_board(place, "later", *words)["cells"]
    shutil.rmtree(place.folder / "later" / "tome_0.7_2")
    monkeypatch.setattr(leaderboard, "tuned", refuse)
    monkeypatch.setattr(leaderboard.Place, "_scores", refuse)
    capsys.readouterr()
    later = [*words, "--seconds", "0.5", "--batch_sizes"]
    after = run_board(place, "later", *later, "2")["cells"]
    assert "tome at 0.7, seed 2, stays without times or looks: its model is not in" in capsys.readouterr().out
    assert sizes(after) == [[2], [2], []] and after[2] == before[2]
    assert all(isinstance(program, Ahead) for program in clocked.compiled[0].values())
    assert clocked.compiled[1] is clocked.compiled[0]  # compiled once
    assert all(isinstance(one, CompiledDynViT) for one in clocked.programs)  # ToMe has one number for all images
    for cell, was in zip(after, before, strict=True):
        same = set(cell) - {"throughput", "timed_command", "timed_commit", "timed_on"}
        assert {name: cell[name] for name in same} == {name: was[name] for name in same}
    assert after[1]["timed_command"] and after[1]["timed_commit"] and ", float32" in after[1]["timed_on"]
    assert (
        f"1.50× (0.75 of the promise) | {after[1]['timed_on']} |"
        in (place.folder / "later" / "leaderboard.md").read_text()
    )
    assert run_board(place, "later", *later, "2")["cells"] == after and len(clocked) == 2
    more = run_board(place, "later", *later, "3", "2")["cells"]
    assert sizes(more) == [[2, 3], [2, 3], []] and more[1]["throughput"][0] == after[1]["throughput"][0]
    assert sizes(run_board(place, "later", *words)["cells"]) == sizes(more)  # times stay
    tuned = run_board(place, "later", *later, "4", "--untrained", "false")["cells"]
    assert sizes(tuned) == [[2, 3], [2, 3, 4], []]
    with pytest.raises(ValueError, match="nothing is left to measure"):
        run_board(place, "later", *words[:4], "--untrained", "false")
    with pytest.raises(RuntimeError, match="trained or evaluated again"):
        run_board(place, "later", *words[:-2], "3")
    with pytest.raises(ValueError, match=r"batch_sizes \[2, 500\] need as many images, .* has \d+$"):
        run_board(place, "later", *later, "2", "500")


def test_a_model_is_measured_as_it_is_kept_whatever_precision_it_was_trained_in(place, clocked):
    words = ["--methods", "tome", "--budgets", "0.7", "--tune", "true", "--bf16", "true", "--batch_sizes", "2"]
    cells = run_board(place, "half", *words)["cells"]
    kept = DynViTForImageClassification.from_pretrained(place.folder / "half" / "tome_0.7_0").eval()
    pixels = images(4)
    untrained, tuned = (entrant.model for entrant in clocked)
    with torch.no_grad():
        logits = tuned(pixels).logits
        torch.testing.assert_close(logits, kept(pixels).logits, rtol=1e-5, atol=1e-6)
    assert not tuned.training and is_prepacked(tuned) and "forward" not in vars(tuned)
    assert not torch.equal(untrained.classifier.weight, tuned.classifier.weight) and len(cells) == 2


def test_times_without_a_rival_of_today_are_taken_anew(place, clocked):
    words = ["--methods", "tome", "--budgets", "0.7", "--tune", "true", "--untrained", "false", "--batch_sizes"]
    run_board(place, "rivals", *words, "2", "3")
    file = place.folder / "rivals" / "leaderboard.json"
    content = json.loads(file.read_text())
    del content["cells"][0]["throughput"][0]["dense_ms"][AHEAD_EAGER]
    file.write_text(json.dumps(content))
    (cell,) = run_board(place, "rivals", *words, "3")["cells"]
    assert len(clocked) == 3 and sizes([cell]) == [[3]]  # no time stands beside one against other rivals


def test_a_cascade_that_was_kept_is_looked_at_later(place, monkeypatch):
    words = ["--methods", "cascade-resized", "--budgets", "0.7", "--tune", "true", "--validation_fraction", "0.2"]
    before = run_board(place, "looked", *words, "--untrained", "false")["cells"]
    file = place.folder / "looked" / "leaderboard.json"
    content = json.loads(file.read_text())
    found = content["cells"][0].pop("looks")
    file.write_text(json.dumps(content))
    monkeypatch.setattr(leaderboard, "tuned", refuse)
    (after,) = run_board(place, "looked", *words, "--untrained", "false")["cells"]
    assert after["looks"] == found and after["looked_command"] and not before[0]["looked_command"]
    assert run_board(place, "looked", *words, "--untrained", "false")["cells"] == [after]


def test_times_of_another_model_or_machine_are_refused(place, capsys, clocked):
    words = ["--methods", "tome", "--budgets", "0.7", "--batch_sizes", "2"]
    run_board(place, "changed", *words[:4])
    file = place.folder / "changed" / "leaderboard.json"
    content = json.loads(file.read_text())
    content["cells"][0]["gates"][0]["merged"] += 1  # as an earlier version would have had it
    file.write_text(json.dumps(content))
    assert sizes(run_board(place, "changed", *words)["cells"]) == [[]] and not clocked
    assert (
        "stays without times or looks: its gates, resolution, looks or last layer would be others today"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"cells of another recipe, \['seed'\] differ"):
        run_board(place, "changed", *words, "--seed", "5")  # other images to calibrate on
    content["cells"][0]["gates"][0]["merged"] -= 1
    file.write_text(json.dumps(content))
    content = run_board(place, "changed", *words)
    file.write_text(json.dumps(content | {"device": "Other CPU"}))
    with pytest.raises(ValueError, match="holds times of another machine, device 'Other CPU' and not"):
        run_board(place, "changed", *words)


def test_the_smaller_dense_model_stands_beside_the_methods_and_is_measured_once(place, monkeypatch):
    words = ["--methods", "resized", "--budgets", "0.7"]
    assert run_board(place, "smaller", *words)["smaller"] is None
    found = run_board(place, "smaller", *words, "--smaller_dense", place.vit)["smaller"]
    assert found["model"] == place.vit and found["cost"] == 1.0 and found["throughput"] == []
    board = read(place.folder / "smaller" / "leaderboard.json", published=True)
    assert board.smaller.gmacs < 0.3 * board.dense.gmacs  # two layers beside twelve
    share = f"{100 * found['accuracy']:.2f} at {board.smaller.gmacs / board.dense.gmacs:.3f} of the dense model's"
    assert share in (place.folder / "smaller" / "leaderboard.md").read_text()
    measured = leaderboard.Place._scores
    monkeypatch.setattr(leaderboard.Place, "_scores", refuse)
    assert run_board(place, "smaller", *words, "--smaller_dense", place.vit)["smaller"] == found
    assert run_board(place, "smaller", *words)["smaller"] == found
    monkeypatch.setattr(leaderboard.Place, "_scores", measured)
    with pytest.raises(OSError, match="smaller_dense .*nowhere' cannot be loaded"):
        run_board(place, "smaller", *words, "--smaller_dense", str(place.folder / "nowhere"))
