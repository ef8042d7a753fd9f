"""Claims about the results tables: what is summed up, what is not, and that every number keeps its circumstances."""

import json
import statistics

import pytest
import yaml
from recipe_place import report

from hf_dynvit.report.rivals import by_seed, percent
from hf_dynvit.report.tables import numbered, runtime_rows


BLOCK = [{"gate": "block", "layers": [1, 2, 3]}]


def training(seed=0, accuracy=0.5, gates="layerskip", budget=0.65, start="vit", **facts):
    """What train.py writes, as far as tables read it."""
    model = {"model_name_or_path": start, "gates": gates, "budget": budget}
    entries = BLOCK if gates == "layerskip" else None if gates in ("none", "keep") else yaml.safe_load(gates)
    return {
        "kind": "training",
        "gates": entries,
        "preset": "layerskip" if gates == "layerskip" else None,
        "learned": {"block": 0.1} if gates == "layerskip" else {},
        "layer_mask": None,
        "agent": None,
        "dataset": "pets",
        "split": "validation",
        "split_files": ["test.parquet"],
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
    mask = {"gates": "keep", "layer_mask": [[True, True], [True, False]], "checkpoint": before}
    row = report.training_row([training() | training(**mask) | {"gates": BLOCK, "learned": {"block": 0.2}}])
    assert row["checkpoint: top-1 at cost"] == "40.00 at 0.512"
    assert row["decides"] == "learned block gates, mask of 3 / 4 sub-layers"


def test_the_file_of_another_script_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"kind": "weather"}))
    with pytest.raises(ValueError, match="other.json was written neither by"):
        report.read(tmp_path / "other.json")


RANDOM = "[{gate: random, unit: block, rate: 0.5}]"
USAGE = {kind: {"1": 0.5, "2": 0.75, "3": 0.0} for kind in ("attention", "mlp")}


AGENT = {
    "name": "random",
    "n_patch_desired": 8,
    "patches": 16,
}  # trained on half of the patches, which is not as dense


def evaluation(gates=BLOCK, accuracy=0.5, cost=0.65, **facts):
    """What evaluate.py writes, as far as tables read it."""
    row = {"batch_size": 8, "speedup": 1.5, "peak_mib": {"dense": 20.0, "packed": 15.0}, "timed_cost": cost}
    row |= {"dense_ms": {"sdpa": 3.0}, "dense_images_per_second": 10.0, "packed_images_per_second": 15.0}
    made = {**training(accuracy=accuracy, budget=0.65), "kind": "evaluation", "gates": gates, "model": "out_0"}
    made |= {"preset": "layerskip" if gates == BLOCK else None}
    made |= {"budget": 0.65, "cost": cost, "dense": None, "dense_model": None, "usage": USAGE, "num_layers": 4}
    row["gates_speedup"] = 1.5
    rows = [{**row, "realised": 1.0}, {**row, "batch_size": 32, "speedup": 2.0, "realised": 1.0}]
    del made["settings"]
    return {**made, "throughput": rows, "command": f"python recipes/evaluate.py {accuracy}", **facts}


def claims(results):
    """claim -> the lines of what was measured, for results of one policy."""
    _, _, section = report.render(results).partition("### What was claimed, what was measured")
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| pets")]
    return {row[2].split(" (")[0]: row[3].removesuffix(" |").split("<br>") for row in rows}


def test_a_policy_is_set_beside_what_it_must_beat():
    mask = {"layer_mask": [[True, True]] * 3 + [[False, False]], "throughput": [], "gates": None}
    found = claims(
        [
            training(0, 0.70, dense={"accuracy": 0.72, "accuracy_top5": 0.9, "cost": 1.0, "gmacs": 1.0}),
            training(1, 0.72),
            training(0, 0.75, gates="none", cost=1.0),
            training(0, 0.60, gates=RANDOM),
            training(1, 0.64, gates=RANDOM),
            training(0, 0.99, gates="none", start="another"),
            training(0, 0.91, gates="none", cost=1.0, agent=AGENT),
            training(0, 0.98, gates="none", images_seen=64000),
            training(0, 0.97, gates=RANDOM, budget=0.9),
            training(0, 0.96, gates="[{gate: random, unit: patch}]"),
            evaluation(accuracy=0.71),
            evaluation(accuracy=0.66, cost=0.64, **mask),
            evaluation(accuracy=0.65, cost=0.6, **mask),
            evaluation(accuracy=0.95, cost=0.8, **mask),
            evaluation(accuracy=0.94, cost=0.6, **{**mask, "images": 10}),
            evaluation(accuracy=0.93, cost=1.0, **{**mask, "layer_mask": None}),
        ]
    )
    lines = found["53 % faster, and no less accurate"]
    assert lines[:5] == [
        "learned: 71.00 ± 1.41 (2 seeds) at cost 0.650 [1], [2]",
        "dense, tuned as long: 75.00 at cost 1.000 [3]",
        "random: 62.00 ± 2.83 (2 seeds) at cost 0.650 [4], [5]",
        "static mask: 66.00 at cost 0.640 [6]",
        "dense checkpoint: 72.00 [1]",
    ]
    assert lines[5:] == [
        "throughput, A CPU, float32: batch 8 +50 % (33 % less time); batch 32 +100 % (50 % less time); "
        "mean +75 % (43 % less time) [7]",
        "throughput against ours, no gates, A CPU, float32: batch 8 +50 % (33 % less time); "
        "batch 32 +50 % (33 % less time); mean +50 % (33 % less time) [7]",
    ]
    assert found["53 % less working memory"] == ["forward, A CPU, float32: batch 8 25 % less; batch 32 25 % less [7]"]
    assert found["a third fewer layers"] == ["skipped per image: 1.8 layers of 4 (44 % fewer) [7]"]


def test_searches_and_steps_stand_beside_the_policy_they_are_of():
    point = {"accuracy": 0.6, "cost": 0.5, "layers": 0.75}
    search = {**training(), "kind": "search", "model": "out_0", "objectives": "reward+layers", "unmasked": point}
    search |= {"picked": {"reported": point}, "images_reported_on": 300, "images_to_choose_on": 300, "space": "3 bits"}
    search |= {"method": "exhaustive", "masks_scored": 8, "seconds": 60.0, "settings": {"batch_size": 8}}
    step = {**training(), "kind": "step_time", "model": "vit", "gates": "block", "cost": 0.5, "memory_ratio": 0.4}
    step |= {"dense_ms": {"sdpa": 2.0}, "packed_ms": 1.0, "time_ratio": 0.5, "agents": []}
    found = claims([training(), search, step, {**search, "model": "another"}, {**step, "model": "another"}])
    assert found["53 % less working memory"] == [
        "training step at random, cost 0.500, A CPU, float32: batch 64 60 % less [1]"
    ]
    assert len(found["a third fewer layers"]) == 1
    assert found["a third fewer layers"][0].startswith(
        "search for reward+layers: 25 % of the layers out, top-1 60.0 at"
    )


def test_steps_with_agents_alone_speak_of_no_policy():
    row = {"agent": "random", "kept": 8.0, "patches": 16, "ms": 1.0, "kernel": "eager", "cost": 0.5}
    step = {**training(), "kind": "step_time", "model": "vit", "dense_ms": {"eager": 4.0, "sdpa": 2.0}}
    step |= {"agents": [row | {"time_ratio": 0.5, "memory_ratio": 0.4}]}
    assert "53 % less working memory" not in claims([training(), step])
    assert "| vit | random | 8.0 of 16 | 0.500 | 2 ms (sdpa) | 1 ms (eager) | 0.50 | 0.40 |" in report.render([step])


def test_policies_apart_have_rows_of_their_own_and_others_none():
    apart = [{"gate": "block", "granularity": "sublayer"}]
    text = report.render([evaluation(), evaluation(apart), evaluation([{"gate": "patch"}]), evaluation(budget=0.5)])
    assert [text.count(f"| pets | blocks (layerskip), budget {budget} |") for budget in (0.65, 0.5)] == [3, 3]
    assert text.count("| pets | attention and MLP apart, budget 0.65 |") == 3
    assert "What was claimed" not in report.render(
        [evaluation([{"gate": "patch"}]), training(gates="[{gate: patch}]")]
    )


def test_what_is_not_given_is_left_out():
    found = claims([training(0, 0.7)])
    assert found == {"53 % faster, and no less accurate": ["learned: 70.00 at cost 0.650 [1]"]}


def test_published_tables_are_written_on_request_alone(tmp_path, monkeypatch, capsys):
    for name, part in (("README", "results"), ("FRONT", "front")):
        monkeypatch.setattr(report, name, tmp_path / f"{name}.md")
        start, end = report.markers(part)
        (tmp_path / f"{name}.md").write_text(f"{start}\nold\n{end}")
    results = tmp_path / "results.json"
    results.write_text(json.dumps(training(cost_std=0.0)))
    tables = report.main([str(results)])
    assert "old" in report.README.read_text() and capsys.readouterr().out == f"{tables}\n"
    other = tmp_path / "other.md"
    other.write_text(report.README.read_text())
    report.main([str(results), "--readme", str(other)])
    assert "old" in report.README.read_text() and "old" in report.FRONT.read_text()
    assert tables in other.read_text() and not capsys.readouterr().out
    report.main(["--write", str(results)])
    assert tables in report.README.read_text() and "old" not in report.FRONT.read_text()


def test_help_is_help_and_a_damaged_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--help"])
    assert end.value.code == 0 and "--write" in capsys.readouterr().out
    (tmp_path / "results.json").write_text('{"kind": "trai')
    with pytest.raises(ValueError, match="results.json is damaged"):
        report.main([str(tmp_path / "results.json")])


def test_a_comparison_of_trained_models_is_refused_by_name(tmp_path):
    dense = dict.fromkeys(("eager", "sdpa", "frozen compile", "ours, no gates"), 1.0)
    (tmp_path / "models.json").write_text(json.dumps({"rows": [{"model": "a", "realised": 1.0, "dense_ms": dense}]}))
    with pytest.raises(ValueError, match="models.json compares trained models.*evaluate.py"):
        report.main([str(tmp_path / "models.json")])


def test_a_runtime_that_was_timed_alone_has_a_row():
    row = {"batch_size": 8, "dense_ms": {"sdpa": 8.0}, "packed_ms": 4.0, "other_ms": {"OpenVINO bf16": 5.0}}
    results = {**evaluation(), "runtimes": {"OpenVINO fp32": {"accuracy": 0.5, "agrees": 1.0, "images": 8}}}
    found = runtime_rows({**results, "throughput": [row]})
    assert [row["dense model in"] for row in found] == ["OpenVINO fp32", "OpenVINO bf16"]
