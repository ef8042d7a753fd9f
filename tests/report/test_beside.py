"""Claims about names of rows and the table of models: rules are called rules, and each model stands beside its rivals."""

from dataclasses import replace

import pytest
from made_results import agent, evaluation, given, speed, training
from recipe_place import report

from hf_dynvit.report.beside import beside_rows, rivals
from hf_dynvit.report.names import cost_spread, decides, reported_on
from hf_dynvit.report.results import Evaluation, Training
from hf_dynvit.report.rivals import by_seed


PATCH = {"gate": "patch", "drop": True, "merge": True, "novelty": 16, "layers": [1, 2]}
SUBLAYER = {"gate": "sublayer", "layers": [1, 2]}
TOKEN = {"gate": "token", "keep": 0.7, "layers": [1, 2]}
RANDOM = {"gate": "random", "drop": True, "rate": 0.5, "layers": [1, 2]}
BLOCKS = {"gate": "random", "unit": "block", "rate": 0.5}


@pytest.mark.parametrize(
    ("gates", "learned", "preset", "name"),
    [
        (None, {}, None, "dense"),
        ([PATCH], {"patch": 0.0}, None, "rule: novelty + merge"),
        ([PATCH | {"merge": False}], {"patch": 0.0}, None, "rule: novelty"),
        ([PATCH], {"patch": 0.01}, None, "learned patch gates + merge"),
        (
            [PATCH, SUBLAYER],
            {"patch": 0.1, "sublayer": 0.2},
            "adavit",
            "learned patch + sub-layer gates + merge (adavit)",
        ),
        ([PATCH, SUBLAYER], {"patch": 0.0, "sublayer": 0.2}, None, "rule: novelty + merge; learned sub-layer gates"),
        ([{"gate": "merge"}], {"merge": 0.0}, "merge", "rule: merging by similarity (merge)"),
        ([{"gate": "tome", "merged": 15}], {}, None, "rule: ToMe, 15 a layer"),
        ([{"gate": "merge"}], {"merge": 0.2}, None, "learned merge gates"),
        ([TOKEN | {"rest": "fuse"}], {}, "evit", "rule: [CLS] attention, keep 0.7, fuse (evit)"),
        ([TOKEN | {"score": "contrast", "rest": "merge"}], {}, None, "rule: contrast, keep 0.7 + merge"),
        ([{"gate": "token", "score": "novelty", "threshold": 0.5}], {"token": 0.0}, None, "rule: novelty"),
        ([TOKEN | {"score": "predictor"}], {"token": 0.2}, "dynamicvit", "learned token gates (dynamicvit)"),
        ([TOKEN | {"score": "linear"}], {"token": 0.0}, None, "fixed token gates"),
        ([{"gate": "tome", "merged": 8}], {}, "tome", "rule: ToMe, 8 a layer (tome)"),
        ([RANDOM | {"merge": True}], {}, None, "rule: random + merge"),
        ([RANDOM], {}, None, "rule: random"),
        ([BLOCKS], {}, None, "rule: random blocks"),
        ([{"gate": "block"}], {"block": 0.0}, None, "fixed block gates"),
        ([{"gate": "block"}], {"block": 0.3}, "layerskip-dynavit", "learned block gates (layerskip-dynavit)"),
        ([{"gate": "block", "bypass": "low_rank"}] * 2, {"block": 0.3}, None, "learned block gates + low-rank bypass"),
        ([BLOCKS | {"bypass": "none"}], {}, None, "rule: random blocks"),
    ],
)
def test_a_model_is_named_by_what_its_weights_say(gates, learned, preset, name):
    assert decides({"gates": gates, "learned": learned, "preset": preset}) == name


def test_images_are_named_by_their_files_and_costs_with_their_spread():
    assert reported_on(training(images=10000)) == "10,000 (validation = test.parquet)"
    assert reported_on(training(images=10, split="held out of train", split_files=[])) == "10 (held out of train)"
    runs = [training(cost=0.5, cost_std=0.02, cost_min=0.4, cost_max=0.6)]
    runs += [training(cost=0.52, cost_std=0.04, cost_min=0.3, cost_max=0.55)]
    assert cost_spread(runs) == "0.510 ± 0.030 (0.30–0.60)"
    assert cost_spread([training(cost=1.0, cost_std=1e-9, cost_min=1.0, cost_max=1.0)]) == "1.000"


def trained(gates, accuracy=0.5, seed=0, **facts):
    """A `Training` at half of the cost, which differs between images if there are gates."""
    spread = 0.1 if gates else 0.0
    return training(seed, accuracy, gates, **{"budget": 0.5, "cost_std": spread, "images_seen": 9600, **facts})


def timed(of, gates=(PATCH,), **facts):
    """An `Evaluation` of a model at half of the cost."""
    speeds = [speed(size, gain, 0.5) for size, gain in ((1, 1.2), (8, 1.6))]
    return evaluation(list(gates), 0.55, 0.5, of, **{"budget": 0.5, "throughput": speeds, **facts})


def beside(*results):
    trainings = by_seed(one for one in results if isinstance(one, Training))
    return beside_rows(trainings, [one for one in results if isinstance(one, Evaluation)])


def test_a_model_stands_beside_dense_and_random_by_the_same_recipe():
    before = {"dense": given()}
    rivals = [
        trained(None, 0.7, name="dense", **before),
        trained(None, 0.72, 1, name="dense"),
        trained([RANDOM], 0.4, name="random"),
        trained([RANDOM | {"merge": True}], 0.45, name="merged", cost=0.51),
        trained([RANDOM | {"merge": True, "rate": 0.9}], 0.65, name="dearer", cost=0.8),
    ]
    others = [
        trained(None, 0.9, name="longer", images_seen=99999),
        trained(None, 0.9, name="elsewhere", start="another"),
        trained(None, 0.9, name="faster", options={"learning_rate": 1e-3}),
        trained(None, 0.9, name="fewer", images=10),
        trained(None, 0.9, name="other_file", split_files=["other.parquet"]),
        trained(None, 0.9, name="agent", agent=agent()),
        trained([BLOCKS], 0.9, name="blocks"),
        trained([RANDOM], 0.9, name="budget", budget=0.7),
    ]
    (row,) = beside(*others, trained([PATCH], 0.66), *rivals, timed("out/model_0"))
    assert row["decides"] == "rule: novelty + merge" and row["data"] == "pets: 1,000 (validation = test.parquet)"
    assert row["dense, as given"] == "60.00" and row["dense, tuned"] == "71.00 ± 1.41 (2 seeds)"
    assert row["random, tuned"] == "40.00 at 0.500" and row["random + merge, tuned"] == "45.00 at 0.510"
    assert row["this model"] == "66.00 at 0.500" and row["its cost"] == "0.500 ± 0.100 (0.30–0.70)"
    assert row["speed-up"] == "float32: batch 1 1.20× (0.60 at cost 0.50), batch 8 1.60× (0.80 at cost 0.50)"
    assert row["images seen"] == "9,600"


def test_the_checkpoint_as_given_is_known_from_whatever_was_measured_on_the_same_images():
    before = {"dense": given()}
    others = [trained(None, 0.7, name="dense", start="another", **before), trained(None, 0.7, name="few", **before)]
    others[1].images = 10
    assert beside(trained([PATCH]), *others)[0]["dense, as given"] == "–"
    for other in (trained([PATCH], name="other", **before), timed("out/model_0", **before)):
        assert beside(trained([PATCH]), *others, other)[0]["dense, as given"] == "60.00"


def test_policies_of_blocks_are_held_against_random_blocks():
    learned = trained([{"gate": "block"}], 0.6, learned={"block": 0.2})
    (row,) = beside(learned, trained([BLOCKS], 0.5, name="blocks"), trained([RANDOM], 0.4, name="patches"))
    assert row["random, tuned"] == "50.00 at 0.500" and row["random + merge, tuned"] == "–"


def test_no_row_is_left_out_for_what_was_not_run():
    (alone,) = beside(trained([PATCH], 0.66))
    rivals = ("dense, as given", "dense, tuned", "random, tuned", "random + merge, tuned", "speed-up")
    assert alone["this model"] == "66.00 at 0.500" and all(alone[name] == "–" for name in rivals)
    whole = timed("elsewhere/model", dense=given())
    half = timed("elsewhere/model", dtype="bfloat16")
    (row,) = beside(whole, half)
    assert row["dense, as given"] == "60.00" and row["dense, tuned"] == row["images seen"] == "–"
    assert row["speed-up"].count("<br>") == 1 and row["this model"] == "55.00 at 0.500"
    assert beside(timed("out/vit", gates=())) == [] and beside(trained(None), trained([RANDOM])) == []


def test_several_seeds_are_summed_up_and_a_model_is_timed_once():
    runs = [trained([PATCH], accuracy, seed) for seed, accuracy in enumerate((0.66, 0.68))]
    (row,) = beside(*runs, timed("out/model_1"))
    assert row["this model"] == "67.00 ± 1.41 at 0.500 (2 seeds)" and row["speed-up"].startswith("float32: batch 1")


def test_the_table_stands_among_all_tables_and_not_without_models():
    text = report.render([trained([PATCH], 0.66)])
    assert "### Beside what it has to beat\n\nFewer computations for each image." in text
    assert "### Beside what it has to beat" not in report.render([trained(None)])


def test_a_rival_from_other_weights_under_the_same_name_is_none():
    own, dense = trained([PATCH], start_weights="a"), trained(None, start_weights="b")
    assert rivals([own], [[own], [dense]])[0] is None
    alike = replace(dense, start_weights="a")
    assert rivals([own], [[own], [alike]])[0] == [alike]
