"""Claims about the results tables: what is summed up, what is not, and that every number keeps its circumstances."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from hf_dynvit.report_seeds import by_seed, percent
from hf_dynvit.report_tables import numbered


RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def load_report():
    spec = importlib.util.spec_from_file_location("recipe_report", RECIPES / "report.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load_report()


def training(seed=0, accuracy=0.5, gates="layerskip", budget=0.65, start="vit", **facts):
    """What train.py writes, as far as tables read it."""
    model = {"model_name_or_path": start, "gates": gates, "budget": budget}
    return {
        "kind": "training",
        "dataset": "pets",
        "split": "validation",
        "images": 1000,
        "accuracy": accuracy,
        "accuracy_top5": 0.9,
        "cost": budget,
        "gmacs": budget,
        "usage": {},
        "train_seconds": 60.0 * (1 + (seed or 0)),
        "resumed": False,
        "images_seen": 6400,
        "steps": 100,
        "batch_size": 64,
        "device": "A CPU",
        "dtype": "float32",
        "threads": 2,
        "seed": seed,
        "versions": {"torch": "2"},
        "commit": "abc",
        "command": f"python recipes/train.py a.yaml --seed {seed} --gates {gates}",
        "settings": {
            "model": model,
            "data": {},
            "training": {"seed": seed, "output_dir": f"out_{seed}", "max_steps": 100},
        },
        **facts,
    }


def test_runs_that_differ_by_seed_alone_are_summed_up():
    runs = [training(2, 0.58), training(0, 0.5), training(1, 0.51)]
    (group,) = by_seed(runs)
    assert [results["seed"] for results in group] == [0, 1, 2]
    row = report.training_row(group)
    deviation = statistics.stdev([50.0, 51.0, 58.0])
    assert row["top-1"] == f"53.00 ± {deviation:.2f} (3 seeds)" and row["seed"] == "0, 1, 2"
    assert row["training"] == "2.0 min" and row["images seen"] == "6,400"
    text = report.render(runs)
    assert "| 0, 1, 2 | abc | [1], [2], [3] |" in text and "± is the sample standard deviation" in text
    assert all(f"{n + 1}. `python recipes/train.py a.yaml --seed {n} --gates layerskip`" in text for n in range(3))


def test_one_seed_stands_as_it_is():
    row = report.training_row([training(3, 0.5)])
    assert row["top-1"] == "50.00" and row["seed"] == "3" and "±" not in report.render([training(3)])


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "def"},
        {"device": "A GPU"},
        {"dtype": "bfloat16 autocast"},
        {"batch_size": 128},
        {"threads": 4},
        {"images": 500},
        {"seed": 0},
    ],
)
def test_runs_that_differ_in_anything_else_stay_apart(change):
    assert len(by_seed([training(0), {**training(1), **change}])) == 2


def test_settings_tell_runs_apart():
    for part, name, value in [("model", "budget", 0.6), ("training", "max_steps", 50), ("data", "min_crop_area", 0.2)]:
        other = training(1)
        other["settings"][part][name] = value
        assert len(by_seed([training(0), other])) == 2


def test_a_seed_that_was_run_twice_counts_once():
    groups = by_seed([training(0), training(1), training(0, 0.9), training(1, 0.8)])
    assert [[results["accuracy"] for results in group] for group in groups] == [[0.5, 0.5], [0.9, 0.8]]
    assert percent(groups[1]).startswith("85.00 ± ")


def test_each_distinct_command_is_printed_once_below_the_table():
    rows = [{"name": "a", "command": "python x.py --out /home/me/o/1"}, {"name": "b", "command": ["python y.py"] * 2}]
    text, listing = numbered([*rows, {"name": "c", "command": "python x.py --out /home/me/o/1"}])
    assert text.splitlines()[2:] == ["| a | [1] |", "| b | [2] |", "| c | [1] |"]
    assert listing == "1. `python x.py --out o/1`\n2. `python y.py`"


def test_a_kept_policy_is_compared_with_its_checkpoint_at_its_cost():
    before = {"accuracy": 0.4, "accuracy_top5": 0.8, "cost": 0.512, "gmacs": 0.1}
    row = report.training_row([training(gates="keep", checkpoint=before, layer_mask=[[True, True], [True, False]])])
    assert row["checkpoint: top-1 at cost"] == "40.00 at 0.512"
    assert row["gates"] == "keep, mask of 3 / 4 sub-layers"


def test_the_file_of_another_script_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"kind": "weather"}))
    with pytest.raises(ValueError, match="other.json was written neither by"):
        report.read(tmp_path / "other.json")
