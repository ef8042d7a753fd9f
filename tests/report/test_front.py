"""Two tables of README.md: methods tuned alike beside each other, and what models gain on the clock."""

from dataclasses import replace

from made_results import MEASURED, evaluation, given, speed
from recipe_place import report

from hf_dynvit.measure.dense import AHEAD, AHEAD_EAGER, OURS
from hf_dynvit.measure.looks import AtBudget, Looks
from hf_dynvit.report import Cell, Leaderboard
from hf_dynvit.report.front import clock_rows, clock_words, tuned_rows, tuned_words
from hf_dynvit.report.leaderboard import named


def cell(method, accuracy, budget=0.5, cost=None, seed=0, tuned=True):
    facts = {"method": method, "budget": budget, "tuned": tuned, "seed": seed, "resolution": None, "gates": None}
    return Cell(**vars(given(accuracy, budget if cost is None else cost)), **facts)


def board(*cells, dataset="pets", steps=150, rate=1e-4, teacher="base"):
    training = {"max_steps": steps, "num_train_epochs": 3.0, "learning_rate": rate}
    settings = {"board": {"images": 12}, "model": {"teacher": teacher}, "training": training}
    same = {"model": "vit", "dataset": dataset, "split": "validation", "split_files": [], "images": 9}
    return Leaderboard(**MEASURED, **same, command="python ...", dense=given(), settings=settings, cells=list(cells))


HALF = (
    cell("tome", 0.5),
    cell("merge", 0.7),
    cell("merge", 0.72, seed=1),
    cell("cascade", 0.8, cost=0.54),
    cell("merge", 0.1, tuned=False),
)


def test_methods_tuned_alike_stand_in_a_row_each_and_the_best_within_the_budget_is_bold():
    dense = [cell("dense", accuracy, 1.0, seed=seed) for seed, accuracy in enumerate((0.75, 0.77))]
    alone = cell("tome", 0.4, budget=0.3)  # beside nothing
    rows = tuned_rows([board(*HALF, alone), board(*dense)], ["merge", "cascade"])
    assert [list(row.values()) for row in rows] == [
        ["dense, as given", "60.00"],
        ["merge, untrained", "10.00 at 0.500"],
        ["dense, tuned", "76.00 ± 1.41 (2 seeds)"],
        ["merge", "**71.00 ± 1.41** at 0.500 (2 seeds)"],
        ["cascade", "80.00 at 0.540"],
        ["tome", "50.00 at 0.500"],
    ]
    assert list(rows[0]) == ["method", "pets, 150 steps, 0.5"]
    assert "*Untrained*" in tuned_words(rows) and "*Untrained*" not in tuned_words(rows[2:])


def turned(cell, **positions):
    """A cascade's cell that was looked at: at_0_3=accuracy is one of its budgets."""
    at = [
        AtBudget(budget=budget, accuracy=found, cost=budget - 0.01, at_random=0.5, cost_at_random=budget - 0.01)
        for budget, found in ((float(name[3:].replace("_", ".")), found) for name, found in positions.items())
    ]
    return replace(cell, looks=Looks(accuracy=[0.5, 0.7], cost=[0.3, 0.9], shares=[0.5, 0.5], at_random=0.6, at=at))


def test_one_cascade_stands_at_every_budget_that_all_of_its_seeds_reach():
    tome = cell("tome", 0.5), cell("tome", 0.79, 0.4)
    pair = [
        turned(cell("cascade", 0.8 + seed / 50, 0.4, 0.39, seed), at_0_5=0.84 + seed / 50, at_0_4=0.8 + seed / 50)
        for seed in (0, 1)
    ]
    few = turned(cell("cascade", 0.9, 0.5), at_0_5=0.9, at_0_4=0.6), turned(cell("evit", 0.4), at_0_5=0.4, at_0_8=0.9)
    rows = tuned_rows([board(*tome, *few, *pair)], ["tome", "cascade"])
    half, less = ("pets, 150 steps, 0.5", "pets, 150 steps, 0.4")
    shown = {row["method"]: (row[half], row[less]) for row in rows}
    assert shown["cascade, one model"] == (
        "85.00 ± 1.41 at 0.490 (2 seeds)",  # not bold: one seed of another model is better
        "**81.00 ± 1.41** at 0.390 (2 seeds)",
    )
    assert shown["cascade"] == ("90.00 at 0.500", "**81.00 ± 1.41** at 0.390 (2 seeds)")
    assert [row["method"] for row in rows][-4:] == ["tome", "cascade", "cascade, one model", "evit"]
    assert "*one model*" in tuned_words(rows) and "*one model*" not in tuned_words(tuned_rows([board(*HALF)]))
    one_seed = [replace(pair[0], looks=None), pair[1]]
    assert "cascade, one model" not in [row["method"] for row in tuned_rows([board(*tome, *few[1:], *one_seed)])]


def test_looks_that_count_alike_are_said_where_they_are_shown():
    alike = [{"resolution": 24, "budget": 0.3}, {"resolution": 32, "budget": 0.5}]
    looks = [{**look, "weight": 4.0**index} for index, look in enumerate(alike)]
    half = (
        replace(cell("cascade", 0.9, seed=0), cascade=looks),
        replace(cell("cascade", 0.8, tuned=False), cascade=alike),
    )
    less = turned(replace(cell("cascade", 0.7, 0.4), cascade=alike), at_0_5=0.8, at_0_4=0.7)
    rows = tuned_rows([board(cell("tome", 0.5), cell("tome", 0.4, 0.4), *half, less)])
    shown = {row["method"]: [*row.values()][1:] for row in rows}
    assert shown["cascade"] == ["**90.00** at 0.500", "**70.00** at 0.400, looks alike"]
    assert shown["cascade, one model"] == ["80.00 at 0.490, looks alike", "**70.00** at 0.390, looks alike"]
    assert shown["cascade, untrained"] == ["80.00 at 0.500, looks alike", "–"]
    assert shown["tome"] == ["50.00 at 0.500", "40.00 at 0.400"]
    assert "\n- *looks alike*" in tuned_words(rows) and "*looks alike*" not in tuned_words(tuned_rows([board(*HALF)]))


def test_what_was_not_run_is_said_and_one_method_alone_is_no_column():
    rows = tuned_rows([board(*HALF), board(*HALF[:2], cell("cascade", 0.6), cell("evit", 0.1), dataset="birds")])
    assert list(rows[0]) == ["method", "pets, 150 steps, 0.5", "birds, 150 steps, 0.5"]
    assert rows[2] == {"method": "dense, tuned", "pets, 150 steps, 0.5": "–", "birds, 150 steps, 0.5": "–"}
    assert rows[-1]["pets, 150 steps, 0.5"] == "–" and rows[-1]["birds, 150 steps, 0.5"] == "10.00 at 0.500"
    assert tuned_rows([board(*HALF[1:3])]) == [] == tuned_rows([])
    assert tuned_rows([board(*HALF[:2])])


def test_boards_of_other_numbers_of_steps_stay_apart_and_untrained_ones_go_with_the_first():
    untrained = board(cell("evit", 0.2, tuned=False), steps=300)
    longer, epochs = board(cell("merge", 0.9), steps=640), board(cell("merge", 0.8), steps=-1)
    found = named([untrained, longer, board(*HALF), epochs])
    lengths = [("pets, 150 steps", 6), ("pets, 640 steps", 1), ("pets, 3 epochs", 1)]
    assert [(name, len(one.cells)) for name, one in found] == lengths
    assert [name for name, _ in named([untrained])] == ["pets"]


def test_boards_of_two_recipes_stay_apart_and_the_front_has_that_of_the_stronger_dense_model():
    weak = board(*HALF, cell("dense", 0.75, 1.0), cell("evit", 0.6))
    strong = board(*HALF, cell("dense", 0.8, 1.0), rate=2e-4, teacher="none")
    found = named([weak, strong, board(cell("tome", 0.6, seed=1)), board(cell("evit", 0.5, tuned=False))])
    assert [(name, len(one.cells)) for name, one in found] == [
        ("pets, 150 steps, learning rate 0.0002, no teacher", 7),  # with what is of no recipe
        ("pets, 150 steps, learning rate 0.0001, teacher base", 8),
    ]
    rows = tuned_rows([weak, strong])
    assert list(rows[0]) == ["method", "pets, 150 steps, 0.5"]
    methods = ["dense, as given", "merge, untrained", "dense, tuned", "tome", "merge", "cascade"]
    assert [row["method"] for row in rows] == methods
    assert rows[2]["pets, 150 steps, 0.5"] == "80.00"
    assert [name for _, name in report.pictures([weak, strong])] == [
        "pets_150_steps_learning_rate_0_0002_no_teacher.png",
        "pets_150_steps_learning_rate_0_0001_teacher_base.png",
    ]


def test_a_board_that_compares_nothing_takes_no_place():
    alone = board(cell("dense", 0.9, 1.0), cell("tome", 0.7), rate=2e-4)
    rows = tuned_rows([alone, board(*HALF, cell("dense", 0.75, 1.0))])
    assert rows[2]["pets, 150 steps, 0.5"] == "75.00" and len(rows) == 6


def test_boards_of_two_checkpoints_never_share_a_name():
    both = [board(*HALF), replace(board(*HALF), model="vit_small")]
    assert [name for name, _ in named(both)] == ["pets, 150 steps, vit", "pets, 150 steps, vit_small"]
    assert len(tuned_rows(both)[0]) == 3 and report.render(both).count("### All methods, pets, 150 steps, vit") == 2


def test_the_best_in_bold_was_run_with_as_many_seeds_as_the_others():
    rows = tuned_rows([board(*HALF, cell("evit", 0.9))])
    assert not [row["method"] for row in rows if "**" in row["pets, 150 steps, 0.5"]]  # nor is the next best one
    rows = tuned_rows([board(*HALF, cell("evit", 0.6))])
    assert [row["method"] for row in rows if "**" in row["pets, 150 steps, 0.5"]] == ["merge"]


def test_models_that_were_timed_stand_with_their_gain_and_the_cheapest_comes_first():
    gates = [{"gate": "merge"}]
    slow = evaluation(gates, 0.7, 0.5, "slow", throughput=[speed(1, 1.2, 0.5), speed(8, 1.6, 0.5)])
    fast = evaluation(gates, 0.6, 0.3, "fast", throughput=[speed(1, 1.5, 0.3)])
    dense = replace(slow, gates=None, cost=1.0)
    first, second = clock_rows([slow, dense, fast, replace(slow, throughput=[])])
    assert (first["top-1"], first["batch 1"], first["batch 8"]) == ("60.00", "1.50× (0.45 at 0.30)", "–")
    assert (second["top-1"], second["batch 1"], second["batch 8"]) == (
        "70.00",
        "1.20× (0.60 at 0.50)",
        "1.60× (0.80 at 0.50)",
    )
    assert clock_rows([dense]) == []
    whole = [replace(speed(1, 1.2, 0.5), program_ms=ms) for ms in (1.2, 1e3)]  # of a dense model in 3.6 ms
    found = [clock_rows([replace(slow, throughput=[one])])[0]["batch 1"] for one in whole]
    assert found == ["3.00×, compiled (1.50 at 0.50)", "1.20× (0.60 at 0.50)"]


def test_tuned_cells_that_were_timed_stand_among_them_and_a_newer_rival_is_named():
    facts = {"timed_on": "A CPU", "timed_commit": "abc", "throughput": [speed(1, 2.0, 0.5)]}
    timed = [replace(cell(name, 0.6, seed=seed), **facts) for name, seed in (("merge", 0), ("dense", 0), ("tome", 1))]
    before = {"eager": 9.0, "sdpa": 8.0, AHEAD: 6.6, OURS: 7.0}
    slow = evaluation([{"gate": "merge"}], 0.7, 0.4, "slow", throughput=[speed(1, 1.2, 0.4, dense_ms=before)])
    slow = replace(slow, dataset="plants")
    made = board(*timed, *HALF)
    of_the_board = evaluation([{"gate": "merge"}], 0.7, 0.4, "pets", throughput=[speed(1, 9.0, 0.4)])
    rows = clock_rows([slow, of_the_board], [made])  # the second is tuned in another way than the board's rows
    assert rows[-1]["decides"] == clock_rows([slow])[0]["decides"]
    assert [row["decides"] for row in rows[:-1]] == [
        f"{name} of those above" for name in ("merge at 0.5, seed 0", "tome at 0.5, seed 1")
    ]
    assert (rows[0]["data"], rows[0]["batch 1"], rows[0]["commit"]) == (
        "pets, 150 steps",
        "2.00× (1.00 at 0.50)",
        "abc",
    )
    assert (
        "Older rows were timed before a dense model compiled with eager attention was among their rivals."
        in clock_words([slow], [made])
    )
    newer = board(replace(timed[0], throughput=[speed(1, dense_ms=before | {AHEAD_EAGER: 6.0})]), *HALF)
    assert "among their rivals; where it was timed it is up to 10% faster than the other." in clock_words(
        [slow], [newer]
    )
    assert "eager attention" not in clock_words([], [newer])


def test_times_of_a_weaker_board_stand_where_the_strongest_has_none():
    facts = {"timed_on": "A CPU", "timed_commit": "abc", "throughput": [speed(1, 2.0, 0.5)]}
    whole = board(*HALF, replace(cell("merge", 0.6, seed=3), **facts), cell("dense", 0.75, 1.0))
    data = {**whole.settings.get("data", {}), "crop_pct": 0.9}
    middle = board(*HALF, cell("dense", 0.9, 1.0))
    middle = replace(middle, crop_pct=0.903, settings={**middle.settings, "data": data})
    (row,) = clock_rows([], [whole, middle])
    assert (row["data"], row["decides"]) == ("pets, 150 steps, whole images", "merge at 0.5, seed 3")
    assert tuned_rows([whole, middle])[2]["pets, 150 steps, 0.5"] == "90.00"
    timed = replace(middle, cells=[*middle.cells, replace(cell("tome", 0.6, seed=4), **facts)])
    (row,) = clock_rows([], [whole, timed])
    assert (row["data"], row["decides"]) == ("pets, 150 steps", "tome at 0.5, seed 4 of those above")


def test_an_older_dense_model_is_named_where_it_was_the_rival():
    timed = evaluation([{"gate": "merge"}], 0.7, 0.5, "timed", throughput=[speed(1, 1.2, 0.5)])
    old = {"eager": 9.0, "frozen compile": 6.0, OURS: 7.0}
    older = replace(timed, throughput=[speed(1, dense_ms=old)])
    assert "frozen compile" in clock_words([timed, older]) and "frozen compile" not in clock_words([timed])


def test_the_front_has_a_table_of_each_kind_there_is():
    timed = evaluation([{"gate": "merge"}], 0.7, 0.5, "timed", throughput=[speed(1, 1.2, 0.5)])
    first, clock = (part([board(*HALF), timed]) for part in report.FRONTS.values())
    assert first.startswith("![Top-1 of all methods against their cost, pets](recipes/results/pets_150_steps.png)")
    assert "| merge |" in first and "1.20×" not in first
    assert clock.startswith("In PyTorch") and "1.20×" in clock and "| merge |" not in clock
    assert "Fewer patches in training" not in clock and "In the runtimes" not in clock
    assert [part([]) for part in report.FRONTS.values()] == ["", ""]


def test_devices_of_the_parts_of_a_board_are_each_named_once():
    amd, intel = (
        replace(board(cell("tome", 0.5, seed=seed)), device=name) for seed, name in enumerate(("AMD", "Intel"))
    )
    names = named([amd, intel])[0][1].device.split(" and ")
    assert len(names) == 2 and {name.split(" ")[0] for name in names} == {"AMD", "Intel"}
    both = named([amd, intel])[0][1]
    for parts in ([both, amd], [amd, both], [intel, both, amd]):
        assert sorted(named(parts)[0][1].device.split(" and ")) == sorted(names)
    assert named([amd, amd])[0][1].device == "AMD"
