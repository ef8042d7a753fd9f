"""Claims about comparisons of agents: parts fit or are refused, and the table says what the runs say."""

import copy

import pytest

from hf_dynvit.report.comparison import (
    KIND,
    check_same,
    comparison_section,
    front_comparison_rows,
    mean_curves,
    merge,
    summarise,
)


def made_run(variant, seed, accuracies=(0.5, 0.8), seconds=100.0, **changes):
    """A run whose evaluations are evenly spaced in time."""
    curve = [
        {
            "step": 10 * (index + 1),
            "seconds": seconds * (index + 1) / len(accuracies),
            "accuracy": accuracy,
            "loss": 1.0,
        }
        for index, accuracy in enumerate(accuracies)
    ]
    agent = None
    if not variant.startswith("none"):
        agent = {"seconds": 2.0, "kept": 8.0, "n_patch_desired": 6, "patches": 16, "options": {}}
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": accuracies[-1],
        "chosen": None,
        "train_seconds": seconds,
        "agent": agent,
        "kept_share": 0.5 if agent else 1.0,
        "step_mib": {"first": 40.0, "last": 80.0},
        "curve": curve,
        "commit": "abc",
        "command": f"python recipes/compare_agents.py r.yaml --seeds {seed}",
        **changes,
    }


def made(*runs, **changes):
    training = {"learning_rate": 1e-3, "n_patch_desired": 8, "seed": 0, "output_dir": "a", "agent": "random"}
    settings = {"model": {"gates": "none"}, "data": {"min_crop_area": 0.8}, "training": training}
    shared = {"dataset": "digits", "steps": 20, "batch_size": 8, "evaluations": 2, "device": "A CPU", "threads": 1}
    shared |= {"dtype": "float32", "versions": {"torch": "2"}, "split": "test", "images": 1000}
    shared |= {"split_files": ["t.parquet"], "curves_on": "held out of train", "curve_images": 90}
    return {"kind": KIND, **shared, "settings": settings, "runs": list(runs)} | changes


# ---------------------------------------------------------------------------------------------- parts


def test_parts_become_one_by_variant_and_seed():
    one = made(made_run("none", 1), made_run("random", 1))
    other = made(made_run("none", 0), made_run("fixed", 0), made_run("random", 0))
    merged = merge({"one": one, "other": other})
    keys = [(run["variant"], run["seed"]) for run in merged["runs"]]
    assert keys == [("none", 0), ("none", 1), ("random", 0), ("random", 1), ("fixed", 0)]
    assert {name: merged[name] for name in merged if name != "runs"} == {
        name: one[name] for name in one if name != "runs"
    }
    assert len(one["runs"]) == 2


def changed(path, value):
    """A comparison with one setting of another value."""
    content = copy.deepcopy(made(made_run("none", 1)))
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("steps",), 30, "one and other were run with different settings: steps is 20 and 30"),
        (("threads",), 2, "threads is 1 and 2"),
        (("images",), 999, "images is 1000 and 999"),
        (("versions",), {"torch": "3"}, "versions is {'torch': '2'} and {'torch': '3'}"),
        (("settings", "training", "n_patch_desired"), 6, "training.n_patch_desired is 8 and 6"),
        (("settings", "training", "weight_decay"), 0.1, "training.weight_decay is None and 0.1"),
        (("settings", "data", "min_crop_area"), 1.0, "data.min_crop_area is 0.8 and 1.0"),
    ],
)
def test_parts_with_another_setting_are_refused_by_its_name(path, value, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        merge({"one": made(made_run("none", 0)), "other": changed(path, value)})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("settings", "training", "seed"), 1),
        (("settings", "training", "output_dir"), "b"),
        (("settings", "training", "agent"), "fixed"),
    ],
)
def test_what_runs_choose_for_themselves_may_differ(path, value):
    assert len(merge({"one": made(made_run("none", 0)), "other": changed(path, value)})["runs"]) == 2


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="give comparisons to merge"):
        merge({})
    with pytest.raises(ValueError, match="other is no comparison of agents: its kind is 'training'"):
        merge({"one": made(), "other": made(kind="training")})
    with pytest.raises(ValueError, match="other: an earlier part holds variant 'none' with seed 0 as well"):
        merge({"one": made(made_run("none", 0)), "other": made(made_run("none", 0))})


def test_a_comparison_that_has_not_loaded_its_data_fits_one_that_has():
    fresh = made()
    del fresh["split"], fresh["images"]
    check_same({"earlier": made(), "now": fresh})


# ---------------------------------------------------------------------------------------------- what they found


def test_means_and_shares_are_those_of_the_dense_run_with_the_same_seed():
    runs = [made_run("none", 0, (0.5, 0.8), 100.0), made_run("none", 1, (0.5, 0.7), 200.0)]
    runs += [made_run("random", 0, (0.6, 0.7), 50.0), made_run("random", 1, (0.6, 0.8), 150.0)]
    row = summarise(runs)["random"]
    assert row["accuracy"] == pytest.approx(0.75) and row["accuracy_deviation"] == pytest.approx(0.1 / 2**0.5)
    assert row["train_seconds"] == 100.0 and row["time_share"] == pytest.approx((0.5 + 0.75) / 2)
    assert row["seeds"] == 2 and row["agent_seconds"] == 2.0 and row["kept_share"] == 0.5
    assert row["asked"] == {"n_patch_desired": 6, "patches": 16} and summarise(runs)["none"]["asked"] is None
    assert row["step_mib"] == {"first": 40.0, "last": 80.0} and row["chosen"] is None
    assert summarise(runs)["none"]["time_share"] == 1.0


def test_the_time_to_nearly_dense_is_that_of_the_first_evaluation_that_is_there():
    dense = [made_run("none", seed, (0.5, 0.79, 0.8), 90.0) for seed in (0, 1)]
    near = made_run("random", 0, (0.7, 0.796, 0.78, 0.8), 80.0)  # half a point below is enough, and it may fall again
    assert summarise([*dense, near])["random"]["close"] == pytest.approx(40.0 / 90.0)
    assert summarise(dense)["none"]["close"] == 1.0
    never = made_run("random", 1, (0.7, 0.794), 80.0)
    row = summarise([*dense, near, never])["random"]
    assert row["close"] is None and row["close_seeds"] == 1
    alone = summarise([made_run("random", 7)])["random"]  # no dense run to compare with
    assert alone["close"] is None and alone["time_share"] is None and alone["close_seeds"] == 0


def test_curves_are_means_over_seeds():
    runs = [made_run("random", 0, (0.5, 0.7), 100.0), made_run("random", 1, (0.7, 0.9), 200.0)]
    assert mean_curves(runs) == {"random": [(75.0, pytest.approx(0.6)), (150.0, pytest.approx(0.8))]}


def test_the_section_has_a_row_for_each_variant_and_each_command_once():
    chosen = {"accuracy": 0.6, "cost": 0.45}
    runs = [made_run("none", seed, (0.5, 0.8)) for seed in (0, 1)]
    runs += [made_run("agentvit-plus", 0, (0.8, 0.7), 60.0, chosen=chosen, commit="def")]
    runs += [made_run("agentvit-plus", 1, (0.6, 0.7), 60.0, chosen=chosen)]
    heading, note, sentence, table, commands = comparison_section([made(*runs)])
    assert heading == "### Agents compared" and "commit abc and def" in sentence and "once, at the end" in note
    assert commands.count("1. ") == 1 and len(commands.splitlines()) == 2 and "[1], [2]" in sentence
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    names, (none, plus) = rows[0], rows[2:]
    found = dict(zip(names, plus, strict=True))
    assert found["agent"] == "agentvit-plus" and found["of dense"] == "0.60" and found["seeds"] == "2"
    assert found["to dense's top-1 − 0.5: of dense"] == "– (1 of 2 seeds)"
    assert found["working memory of the first and last step"] == "40 and 80 MiB"
    assert found["top-1 on chosen patches at cost"] == "60.00 at 0.450"
    assert dict(zip(names, none, strict=True))["top-1 on chosen patches at cost"] == "–"
    assert comparison_section([]) == []


def agent_report(desired=6, **options):
    return {"seconds": 2.0, "kept": 8.0, "n_patch_desired": desired, "patches": 16, "options": options}


OURS = agent_report(merge=True, return_fraction=0.5)
BEST = "the best other one in no more time"


def made_runs(variant, seeds, accuracy, seconds, **changes):
    return [made_run(variant, seed, (0.5, accuracy), seconds, **changes) for seed in seeds]


def test_the_front_names_the_best_of_all_that_took_no_more_time():
    runs = made_runs("none", (0, 1), 0.8, 100.0) + made_runs("agentvit-plus", (0, 1), 0.81, 60.0, agent=OURS)
    runs += made_runs("random", (0, 1), 0.75, 50.0) + made_runs("random:n_patch_desired=9", (0, 1), 0.9, 90.0)
    for best, cell in [
        ([], "random: 75.00 ± 0.00 in 0.50"),
        (made_runs("none:max_steps=9", (0, 1), 0.76, 60.0), "dense: 76.00 ± 0.00 in 0.60 (max_steps=9)"),
        (made_runs("progressive", (1,), 0.77, 61.0), "progressive: 77.00 in 0.61, 1 seed"),
        (made_runs("agentvit", (0, 1, 2), 0.78, 50.0), "agentvit: 78.00 ± 0.00 in 0.50, 3 seeds"),
    ]:
        runs += best
        (row,) = front_comparison_rows([made(*runs)])
        assert row[BEST] == cell
    assert row["dense"] == "80.00 ± 0.00" and row["agentvit-plus"] == "81.00 ± 0.00 in 0.60" and row["seeds"] == 2
    assert row["dense in fewer steps"] == "76.00 ± 0.00 in 0.60 (max_steps=9)" and row["the same at random"] == "–"
    assert row["data"] == "digits: 1,000 (test = t.parquet); 20 steps of 8 images"
    assert len(row["command"]) == 2 + 2 + 2 + 3  # dense, ours, dense in fewer steps, the best one


def test_the_twin_at_random_has_the_patches_the_schedule_the_merging_and_the_steps_of_ours():
    runs = made_runs("none", (0,), 0.8, 100.0) + made_runs("agentvit-plus", (0,), 0.81, 60.0, agent=OURS)
    same = {"merge": True, "return_fraction": 0.5}
    others = [agent_report(**same | {"merge": False}), agent_report(**same | {"return_fraction": 1.0})]
    others += [agent_report(7, **same)]
    for number, agent in enumerate(others):
        runs += made_runs(f"random:x={number}", (0,), 0.7, 50.0, agent=agent)
    runs += [made_run("random:max_steps=9", 0, (0.4, 0.5, 0.7), 50.0, agent=agent_report(**same))]  # another last step
    assert front_comparison_rows([made(*runs)])[0]["the same at random"] == "–"
    runs += made_runs("random:merge=true,return_fraction=0.5", (0,), 0.79, 90.0, agent=agent_report(**same))
    found = front_comparison_rows([made(*runs)])[0]["the same at random"]
    assert found == "79.00 in 0.90 (merge=true, return_fraction=0.5)"


def test_no_row_of_the_front_is_left_out_for_what_was_not_run():
    ours = made_runs("agentvit-plus", (0, 1), 0.81, 60.0, agent=OURS)
    (row,) = front_comparison_rows([made(*ours)])
    assert row["agentvit-plus"] == "81.00 ± 0.00" and row["dense"] == row["the same at random"] == row[BEST] == "–"
    (row,) = front_comparison_rows([made(*made_runs("none", (1,), 0.8, 100.0), *ours)])
    assert row["agentvit-plus"] == "81.00 ± 0.00 in 0.60" and row["dense"] == "80.00, 1 seed"
    (row,) = front_comparison_rows([made(*ours, *made_runs("random", (0,), 0.7, 61.0))])  # by seconds
    assert row[BEST] == "random: 70.00, 1 seed"
    assert front_comparison_rows([]) == [] and front_comparison_rows([made(*made_runs("none", (0,), 0.8, 9.0))]) == []


def test_an_agent_that_drew_at_random_says_so_in_its_row():
    runs = [made_run("agentvit", seed, agent=agent_report() | {"epsilon": 0.96 + seed / 50}) for seed in (0, 1)]
    table = comparison_section([made(*runs, made_run("random", 0))])[3]
    assert "| agentvit (97 % of its masks random) | 2 |" in table and "| random | 1 |" in table


def test_what_is_followed_in_training_is_not_what_is_reported():
    dense = made_run("none", 0, (0.6, 0.7), 100.0, accuracy=0.9)
    near, far = made_run("random", 0, (0.5, 0.696), 80.0), made_run("fixed", 0, (0.5, 0.69), 80.0, accuracy=0.95)
    summary = summarise([dense, near, far])
    assert summary["random"]["close"] == 0.8 and summary["fixed"]["close"] is None
    assert summary["none"]["accuracy"] == 0.9 and summary["fixed"]["accuracy"] == 0.95
    sentence = comparison_section([made(dense)])[2]
    assert "top-1 on images: 1,000 (test = t.parquet), curves on 90 (held out of train)" in sentence


def test_a_seed_that_the_dense_model_lacks_leaves_the_shares_of_the_others():
    runs = [made_run("none", 0, (0.5, 0.8), 100.0), made_run("random", 0, (0.6, 0.8), 50.0)]
    runs += [made_run("random", 1, (0.6, 0.7), 150.0)]
    row = summarise(runs)["random"]
    assert row["time_share"] == 0.5 and row["close"] == 0.5 and row["seeds"] == 2 and row["dense_seeds"] == 1
