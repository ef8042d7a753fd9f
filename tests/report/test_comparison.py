"""Claims about comparisons of agents: parts fit or are refused, and the table says what the runs say."""

from dataclasses import replace
from math import isnan

import pytest
from made_results import agent, comparison, run, training

from hf_dynvit.report.beside import BEST, agent_rows
from hf_dynvit.report.comparison import check_same, comparison_section, mean_curves, merge, summarise


# ---------------------------------------------------------------------------------------------- parts


def test_parts_become_one_by_variant_and_seed():
    one = comparison(run("none", 1), run("random", 1))
    other = comparison(run("none", 0), run("fixed", 0), run("random", 0))
    merged = merge({"one": one, "other": other})
    keys = [(one.variant, one.seed) for one in merged.runs]
    assert keys == [("none", 0), ("none", 1), ("random", 0), ("random", 1), ("fixed", 0)]
    assert replace(merged, runs=one.runs) == one and len(one.runs) == 2


def changed(path, value):
    """A comparison with one setting of another value."""
    content = comparison(run("none", 1))
    if len(path) == 1:
        return replace(content, **{path[0]: value})
    content.settings[path[1]][path[2]] = value
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
        (("settings", "training", "harm_images"), 64, "training.harm_images is None and 64"),
        (("settings", "data", "min_crop_area"), 1.0, "data.min_crop_area is 0.8 and 1.0"),
    ],
)
def test_parts_with_another_setting_are_refused_by_its_name(path, value, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        merge({"one": comparison(run("none", 0)), "other": changed(path, value)})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("settings", "training", "seed"), 1),
        (("settings", "training", "output_dir"), "b"),
        (("settings", "training", "agent"), "fixed"),
        (("settings", "training", "harm_images"), 0),  # unknown to the earlier part, and what it is there
        (("settings", "training", "harm_shares"), "[0.0, 0.03, 0.06, 0.12]"),
    ],
)
def test_what_runs_choose_for_themselves_may_differ(path, value):
    assert len(merge({"one": comparison(run("none", 0)), "other": changed(path, value)}).runs) == 2


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="give comparisons to merge"):
        merge({})
    with pytest.raises(ValueError, match="other is no comparison of agents: its kind is 'training'"):
        merge({"one": comparison(), "other": training()})
    with pytest.raises(ValueError, match="other: an earlier part holds variant 'none' with seed 0 as well"):
        merge({"one": comparison(run("none", 0)), "other": comparison(run("none", 0))})


def test_a_comparison_that_has_not_loaded_its_data_fits_one_that_has():
    check_same({"earlier": comparison(), "now": comparison(split=None, images=None)})


# ---------------------------------------------------------------------------------------------- what they found


def test_means_and_shares_are_those_of_the_dense_run_with_the_same_seed():
    runs = [run("none", 0, (0.5, 0.8), 100.0), run("none", 1, (0.5, 0.7), 200.0)]
    runs += [run("random", 0, (0.6, 0.7), 50.0), run("random", 1, (0.6, 0.8), 150.0)]
    row = summarise(runs).loc["random"]
    assert row["accuracy"] == pytest.approx(0.75) and row["accuracy_deviation"] == pytest.approx(0.1 / 2**0.5)
    assert row["train_seconds"] == 100.0 and row["time_share"] == pytest.approx((0.5 + 0.75) / 2)
    assert row["seeds"] == 2 and row["agent_seconds"] == 2.0 and row["kept_share"] == 0.5
    assert (row["asked"], row["patches"]) == (6, 16) and isnan(summarise(runs).loc["none"]["asked"])
    assert (row["first_mib"], row["last_mib"]) == (40.0, 80.0) and isnan(row["chosen_cost"])
    assert summarise(runs).loc["none"]["time_share"] == 1.0


def test_the_time_to_nearly_dense_is_that_of_the_first_evaluation_that_is_there():
    dense = [run("none", seed, (0.5, 0.79, 0.8), 90.0) for seed in (0, 1)]
    near = run("random", 0, (0.7, 0.796, 0.78, 0.8), 80.0)  # half a point below is enough, and it may fall again
    assert summarise([*dense, near]).loc["random"]["close"] == pytest.approx(40.0 / 90.0)
    assert summarise(dense).loc["none"]["close"] == 1.0
    never = run("random", 1, (0.7, 0.794), 80.0)
    row = summarise([*dense, near, never]).loc["random"]
    assert isnan(row["close"]) and row["close_seeds"] == 1
    alone = summarise([run("random", 7)]).loc["random"]  # no dense run to compare with
    assert isnan(alone["close"]) and isnan(alone["time_share"]) and alone["close_seeds"] == 0


def test_curves_are_means_over_seeds():
    runs = [run("random", 0, (0.5, 0.7), 100.0), run("random", 1, (0.7, 0.9), 200.0)]
    assert mean_curves(runs) == {"random": [(75.0, pytest.approx(0.6)), (150.0, pytest.approx(0.8))]}


def test_the_section_has_a_row_for_each_variant_and_each_command_once():
    chosen = {"accuracy": 0.6, "cost": 0.45}
    runs = [run("none", seed, (0.5, 0.8)) for seed in (0, 1)]
    runs += [run("agentvit-plus", 0, (0.8, 0.7), 60.0, chosen=chosen, commit="def")]
    runs += [run("agentvit-plus", 1, (0.6, 0.7), 60.0, chosen=chosen)]
    heading, note, sentence, table, commands = comparison_section([comparison(*runs)])
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


OURS = agent(6, merge=True, return_fraction=0.5)


def made_runs(variant, seeds, accuracy, seconds, **changes):
    return [run(variant, seed, (0.5, accuracy), seconds, **changes) for seed in seeds]


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
        (row,) = agent_rows([comparison(*runs)])
        assert row[BEST] == cell
    assert row["dense"] == "80.00 ± 0.00" and row["agentvit-plus"] == "81.00 ± 0.00 in 0.60" and row["seeds"] == 2
    assert row["dense in fewer steps"] == "76.00 ± 0.00 in 0.60 (max_steps=9)" and row["the same at random"] == "–"
    assert row["data"] == "digits: 1,000 (test = t.parquet); 20 steps of 8 images"


def test_the_twin_at_random_has_the_patches_the_schedule_the_merging_and_the_steps_of_ours():
    runs = made_runs("none", (0,), 0.8, 100.0) + made_runs("agentvit-plus", (0,), 0.81, 60.0, agent=OURS)
    same = {"merge": True, "return_fraction": 0.5}
    others = [agent(6, **same | {"merge": False}), agent(6, **same | {"return_fraction": 1.0})]
    others += [agent(7, **same)]
    for number, other in enumerate(others):
        runs += made_runs(f"random:x={number}", (0,), 0.7, 50.0, agent=other)
    runs += [run("random:max_steps=9", 0, (0.4, 0.5, 0.7), 50.0, agent=agent(6, **same))]  # another last step
    assert agent_rows([comparison(*runs)])[0]["the same at random"] == "–"
    runs += made_runs("random:merge=true,return_fraction=0.5", (0,), 0.79, 90.0, agent=agent(6, **same))
    found = agent_rows([comparison(*runs)])[0]["the same at random"]
    assert found == "79.00 in 0.90 (merge=true, return_fraction=0.5)"


def test_an_agent_that_learns_nothing_is_the_twin_of_the_others_and_no_row_of_its_own():
    options = {"merge": True, "return_fraction": 0.5}
    runs = made_runs("none", (0, 1), 0.8, 100.0)
    runs += made_runs(
        "agentvit-plus", (0, 1), 0.81, 60.0, agent=agent(6, "agentvit-plus", **options)
    )  # of a time before the option
    runs += made_runs(
        "agentvit-plus:credit=saliency",
        (0, 1),
        0.82,
        62.0,
        agent=agent(6, "agentvit-plus", **options, credit="saliency"),
    )
    assert [row["without learning"] for row in agent_rows([comparison(*runs)])] == ["–", "–"]
    runs += made_runs(
        "agentvit-plus:credit=none", (0, 1), 0.79, 59.0, agent=agent(6, "agentvit-plus", **options, credit="none")
    )
    rows = agent_rows([comparison(*runs)])
    assert [row["agentvit-plus"] for row in rows] == ["81.00 ± 0.00 in 0.60", "82.00 ± 0.00 in 0.62 (credit=saliency)"]
    assert {row["without learning"] for row in rows} == {"79.00 ± 0.00 in 0.59 (credit=none)"}
    assert {row[BEST] for row in rows} == {"agentvit-plus: 79.00 ± 0.00 in 0.59 (credit=none)"}
    assert {row["the same at random"] for row in rows} == {"–"}
    runs += made_runs(
        "agentvit-plus:n_patch_desired=9", (0,), 0.83, 70.0, agent=agent(9, "agentvit-plus", **options, credit="pairs")
    )
    assert agent_rows([comparison(*runs)])[-1]["without learning"] == "–"  # more patches: another twin
    uniform = agent(6, "agentvit-plus", **options, credit="none", novelty=0.0)
    runs = [*made_runs("agentvit-plus:credit=none,novelty=0", (0, 1), 0.7, 59.0, agent=uniform), *runs]
    assert agent_rows([comparison(*runs)])[0]["without learning"] == "79.00 ± 0.00 in 0.59 (credit=none)"


def test_no_row_of_the_front_is_left_out_for_what_was_not_run():
    ours = made_runs("agentvit-plus", (0, 1), 0.81, 60.0, agent=OURS)
    (row,) = agent_rows([comparison(*ours)])
    assert row["agentvit-plus"] == "81.00 ± 0.00" and row["dense"] == row["the same at random"] == row[BEST] == "–"
    (row,) = agent_rows([comparison(*made_runs("none", (1,), 0.8, 100.0), *ours)])
    assert row["agentvit-plus"] == "81.00 ± 0.00 in 0.60" and row["dense"] == "80.00, 1 seed"
    (row,) = agent_rows([comparison(*ours, *made_runs("random", (0,), 0.7, 61.0))])  # by seconds
    assert row[BEST] == "random: 70.00, 1 seed"
    assert agent_rows([]) == [] and agent_rows([comparison(*made_runs("none", (0,), 0.8, 9.0))]) == []


def test_an_agent_that_drew_at_random_says_so_in_its_row():
    runs = [run("agentvit", seed, agent=agent(6, epsilon=0.96 + seed / 50)) for seed in (0, 1)]
    table = comparison_section([comparison(*runs, run("random", 0))])[3]
    assert "| agentvit (97 % of its masks random) | 2 |" in table and "| random | 1 |" in table


def test_what_is_followed_in_training_is_not_what_is_reported():
    dense = run("none", 0, (0.6, 0.7), 100.0, accuracy=0.9)
    near, far = run("random", 0, (0.5, 0.696), 80.0), run("fixed", 0, (0.5, 0.69), 80.0, accuracy=0.95)
    summary = summarise([dense, near, far])
    assert summary.loc["random"]["close"] == 0.8 and isnan(summary.loc["fixed"]["close"])
    assert summary.loc["none"]["accuracy"] == 0.9 and summary.loc["fixed"]["accuracy"] == 0.95
    sentence = comparison_section([comparison(dense)])[2]
    assert "top-1 on images: 1,000 (test = t.parquet), curves on 90 (held out of train)" in sentence


def test_a_seed_that_the_dense_model_lacks_leaves_the_shares_of_the_others():
    runs = [run("none", 0, (0.5, 0.8), 100.0), run("random", 0, (0.6, 0.8), 50.0)]
    runs += [run("random", 1, (0.6, 0.7), 150.0)]
    row = summarise(runs).loc["random"]
    assert row["time_share"] == 0.5 and row["close"] == 0.5 and row["seeds"] == 2 and row["dense_seeds"] == 1
