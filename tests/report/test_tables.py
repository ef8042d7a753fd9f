"""Claims about the results tables: what is summed up, what is not, and that every number keeps its circumstances."""

import statistics
from dataclasses import replace

import pytest
from made_results import (
    BLOCK,
    agent,
    evaluation,
    given,
    per_image,
    policy,
    search,
    speed,
    step_time,
    training,
    written,
)
from recipe_place import publish_in, report

from hf_dynvit.report.markdown import numbered, rows
from hf_dynvit.report.rivals import by_seed, percent
from hf_dynvit.report.tables import RUNTIMES, TRAINED, runtime_items


def test_runs_that_differ_by_seed_alone_are_summed_up():
    runs = [policy(2, 0.58), policy(0, 0.5), policy(1, 0.51)]
    (group,) = by_seed(runs)
    assert [run.seed for run in group] == [0, 1, 2]
    (row,) = rows(TRAINED, [(group,)])
    deviation = statistics.stdev([50.0, 51.0, 58.0])
    assert row["top-1"] == f"53.00 ± {deviation:.2f} (3 seeds)" and row["seed"] == "0, 1, 2"
    assert row["training"] == "2.0 min" and row["images seen"] == "6,400"
    text = report.render(runs)
    assert "| 0, 1, 2 | abc | [1], [2], [3] |" in text and "± is the sample standard deviation" in text
    assert all(f"{n + 1}. `python recipes/train.py model --seed {n}`" in text for n in range(3))


def test_one_seed_stands_as_it_is():
    (row,) = rows(TRAINED, [([policy(3, 0.5)],)])
    assert row["top-1"] == "50.00" and row["seed"] == "3" and "Several seeds" not in report.render([policy(3)])


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
    assert len(by_seed([training(0), replace(training(1), **change)])) == 2


def test_settings_tell_runs_apart():
    for part, name, value in [("model", "budget", 0.6), ("training", "max_steps", 50), ("data", "min_crop_area", 0.2)]:
        other = training(1)
        other.settings[part][name] = value
        assert len(by_seed([training(0), other])) == 2


def test_a_seed_that_was_run_twice_counts_once():
    groups = by_seed([training(0), training(1), training(0, 0.9), training(1, 0.8)])
    assert [[run.accuracy for run in group] for group in groups] == [[0.5, 0.5], [0.9, 0.8]]
    assert percent(groups[1]).startswith("85.00 ± ")


def test_each_distinct_command_is_printed_once_below_the_table():
    made = [{"name": "a", "command": "python x.py --out /home/me/o/1"}, {"name": "b", "command": ["python y.py"] * 2}]
    text, listing = numbered([*made, {"name": "c", "command": "python x.py --out /home/me/o/1"}])
    assert text.splitlines()[2:] == ["| a | [1] |", "| b | [2] |", "| c | [1] |"]
    assert listing == "1. `python x.py --out o/1`\n2. `python y.py`"


def test_cells_are_written_as_they_are_and_what_is_not_there_is_a_dash():
    text, _ = numbered([{"a": "x | y", "b": 1, "command": "z"}, {"a": 0.65, "b": None, "command": "z"}])
    assert text.splitlines()[2:] == [r"| x \| y | 1 | [1] |", "| 0.65 | – | [1] |"]


def test_a_kept_policy_is_compared_with_its_checkpoint_at_its_cost():
    kept = policy(layer_mask=[[True, True], [True, False]], checkpoint=given(0.4, 0.512), preset=None)
    (row,) = rows(TRAINED, [([kept],)])
    assert row["checkpoint: top-1 at cost"] == "40.00 at 0.512"
    assert row["decides"] == "learned block gates, mask of 3 / 4 sub-layers"


RANDOM = "[{gate: random, unit: block, rate: 0.5}]"


def claims(results):
    """claim -> the lines of what was measured, for results of one policy."""
    _, _, section = report.render(results).partition("### What was claimed, what was measured")
    lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| pets")]
    return {line[2].split(" (")[0]: line[3].removesuffix(" |").split("<br>") for line in lines}


def test_a_policy_is_set_beside_what_it_must_beat():
    mask = {"layer_mask": [[True, True]] * 3 + [[False, False]], "throughput": [], "gates": None}
    found = claims(
        [
            policy(0, 0.70, dense=given(0.72)),
            policy(1, 0.72),
            training(0, 0.75, gates=None, name="dense"),
            training(0, 0.60, gates=RANDOM, name="random"),
            training(1, 0.64, gates=RANDOM, name="random"),
            training(0, 0.99, gates=None, start="another"),
            training(0, 0.91, gates=None, agent=agent()),  # trained on half of the patches, which is not as dense
            training(0, 0.98, gates=None, images_seen=64000),
            training(0, 0.97, gates=RANDOM, budget=0.9),
            training(0, 0.96, gates="[{gate: random, unit: patch}]"),
            evaluation(accuracy=0.71),
            evaluation(accuracy=0.66, cost=0.64, **mask),
            evaluation(accuracy=0.65, cost=0.6, **mask),
            evaluation(accuracy=0.95, cost=0.8, **mask),
            evaluation(accuracy=0.94, cost=0.6, **{**mask, "images": 10}),
            evaluation(accuracy=0.93, cost=1.0, **{**mask, "layer_mask": None}),
            evaluation(accuracy=0.92, cost=0.6, **{**mask, "layer_mask": None}, last_layer="read"),
            evaluation(accuracy=0.92, cost=0.6, **mask, last_layer="read"),
            evaluation(accuracy=0.92, cost=0.6, **mask, resolution=24),
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
        "batch 32 +100 % (50 % less time); mean +75 % (43 % less time) [7]",
    ]
    less = "batch 8 25 % less; batch 32 25 % less [7]"
    assert found["53 % less working memory"] == [
        f"forward, A CPU, float32: {less}",
        f"forward against ours, no gates, A CPU, float32: {less}",
    ]
    assert found["a third fewer layers"] == ["skipped per image: 1.8 layers of 4 (44 % fewer) [7]"]


def step(**facts):
    return {"cost": 0.5, "ms": 1.0, "peak_mib": 4.0, "time_ratio": 0.5, "memory_ratio": 0.4, **facts}


def test_searches_and_steps_stand_beside_the_policy_they_are_of():
    block = step(gates="block")
    steps = [step_time(steps=[block]), step_time("another", steps=[block])]
    found = claims([policy(), search(), *steps, search("another")])
    assert found["53 % less working memory"] == [
        "training step at random, cost 0.500, A CPU, float32: batch 64 60 % less [2]"
    ]
    assert len(found["a third fewer layers"]) == 1
    assert found["a third fewer layers"][0].startswith(
        "search for reward+layers: 25 % of the layers out, top-1 60.0 at"
    )


def test_steps_with_agents_alone_speak_of_no_policy():
    row = step(agent="random", kept=8.0, patches=16, n_patch_desired=8, kernel="eager", learn_every=1, step_ms={})
    timed = step_time(steps=[row])
    assert "53 % less working memory" not in claims([policy(), timed])
    assert "| vit | random | 8.0 of 16 | 0.500 | 2 ms (sdpa) | 1 ms (eager) | 0.50 | 0.40 |" in report.render([timed])


def test_policies_apart_have_rows_of_their_own_and_others_none():
    apart = [{"gate": "block", "granularity": "sublayer"}]
    text = report.render([evaluation(), evaluation(apart), evaluation([{"gate": "patch"}]), evaluation(budget=0.5)])
    assert [text.count(f"| pets | blocks (layerskip), budget {budget} |") for budget in (0.65, 0.5)] == [3, 3]
    assert text.count("| pets | attention and MLP apart, budget 0.65 |") == 3
    assert "What was claimed" not in report.render(
        [evaluation([{"gate": "patch"}]), training(gates="[{gate: patch}]")]
    )


def test_what_is_not_given_is_left_out():
    found = claims([policy(0, 0.7)])
    assert found == {"53 % faster, and no less accurate": ["learned: 70.00 at cost 0.650 [1]"]}


def test_an_option_is_found_wherever_the_settings_keep_it():
    nested = training(options={"objective_options": {"price": 3.0}, "price": 1.0})
    assert nested.option("price") == 3.0 and nested.option("learning_rate") == 1e-4
    assert training(options={"price": 1.0}).option("price") == 1.0 and training().option("price") is None


def test_published_tables_are_written_on_request_alone(tmp_path, monkeypatch, capsys):
    publish_in(tmp_path, monkeypatch)
    results = written(tmp_path, training(gates=BLOCK), "made.json")
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


def test_a_runtime_that_was_timed_alone_has_a_row():
    timed = speed(other_ms={"OpenVINO bf16": 5.0})
    known = {"OpenVINO fp32": {"accuracy": 0.5, "agrees": 1.0, "images": 8}}
    found = rows(RUNTIMES, runtime_items(evaluation(runtimes=known, throughput=[timed])))
    assert [row["dense model in"] for row in found] == ["OpenVINO fp32", "OpenVINO bf16"]


def test_costs_of_single_images_stand_beside_equal_costs():
    found = [evaluation(per_image=per_image()), evaluation(), evaluation(per_image=per_image(correlation=None))]
    section = report.render(found).partition("### Per image\n\n")[2].partition("\n\n### ")[0]
    heading, _, *lines = section.splitlines()[:4]
    assert heading.startswith(
        "| model | data | decides | images | top-1 at cost | top-1 at the same cost for every image |"
    )
    assert lines[0].startswith(
        "| out/model_0 | pets | learned block gates (layerskip) | 200 of 1,000 (validation = test.parquet) | 70.00 at 0.500 "
        "± 0.100 (0.25–0.80) | 68.00 at 0.499 ± 0.002 (10 images lost, 6 gained) | 0.31 | 72.00 | A CPU | float32 | 64 | 0 |"
    )
    assert "6 gained) | – | 72.00" in lines[1] and "Spearman's" in section
    assert "### Per image" not in report.render([evaluation()])
