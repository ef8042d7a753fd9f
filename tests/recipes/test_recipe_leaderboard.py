"""The recipe leaderboard.py: every method at the same budgets, untrained and tuned, in one table and one plot."""

import json

import pytest
import torch
from models import images
from recipe_place import merge, report, run_board

from hf_dynvit import DynViTForImageClassification, register_method
from hf_dynvit.deploy.compiled import program_of
from hf_dynvit.model.scorers import SCORERS
from hf_dynvit.report import leaderboard_tuning, read
from hf_dynvit.report.leaderboard import named
from hf_dynvit.training.calibration import mean_cost
from hf_dynvit.training.looks import looks_for
from hf_dynvit.training.method_models import prepare
from hf_dynvit.training.methods import METHODS, check_methods, places
from hf_dynvit.training.resolution import Trial, trial, within
from hf_dynvit.training.timed_calibration import OutOfReach


def test_methods_meet_budgets_untrained_and_tuned_and_go_on_where_they_were(place, capsys):
    words = ["--methods", "merge-resized", "evit", "tome", "resized", "--budgets", "0.7"]
    found = run_board(place, "board", *words)
    assert [cell["method"] for cell in found["cells"]] == ["merge-resized", "evit", "tome", "resized"]
    for cell in found["cells"]:
        assert not cell["tuned"] and cell["cost"] == pytest.approx(0.7, abs=0.15), cell
    assert found["cells"][3]["gates"] is None and found["cells"][3]["resolution"] in (24, [24])
    file = place.folder / "board" / "leaderboard.json"
    for cell in found["cells"]:
        cell["commit"] = "0ldc0de"  # an earlier start, which its cells go on naming
    file.write_text(json.dumps(found))
    again = run_board(place, "board", *words[:5], "--budgets", "0.7", "--tune", "true", "--seeds", "3")
    assert again["cells"][:4] == found["cells"]
    assert [(cell["method"], cell["tuned"], cell["seed"]) for cell in again["cells"][4:]] == [
        (method, True, 3) for method in ("merge-resized", "evit", "tome", "resized")
    ]
    folder = place.folder / "board"
    board = read(folder / "leaderboard.json", published=True)
    assert (folder / "leaderboard.png").stat().st_size > 5000
    table = (folder / "leaderboard.md").read_text()
    assert f"commit 0ldc0de and {board.commit}, [1]:" in table
    for cell in board.cells:
        assert f"{100 * cell.accuracy:.2f}" in table and f"{cell.cost:.3f}" in table
    assert "| evit | tuned |" in report.main([str(folder / "leaderboard.json")])
    capsys.readouterr()


def test_the_dense_model_can_be_tuned_beside_them(place):
    untrained, tuned = run_board(place, "dense", "--methods", "dense", "--budgets", "1.0", "--tune", "true")["cells"]
    assert untrained["cost"] == tuned["cost"] == 1.0 and untrained["gates"] is None is tuned["resolution"]


@pytest.mark.parametrize("method, looks", [("cascade-together-resized", 2), ("cascade-every-resized", 3)])
def test_looks_of_the_plain_vit_learn_together(place, monkeypatch, method, looks):
    monkeypatch.setattr("hf_dynvit.training.looks.EVERY", [0.2, 0.6, 1.0])
    trained, build = [], leaderboard_tuning.DynViTTrainer
    monkeypatch.setattr(
        leaderboard_tuning, "DynViTTrainer", lambda **given: trained.append(given["args"]) or build(**given)
    )
    words = ["--methods", method, "--budgets", "0.7", "--tune", "true", "--validation_fraction", "0.2"]
    (cell,) = run_board(place, method, *words)["cells"]
    assert [args.looks_together for args in trained] == [True] and cell["tuned"]
    assert cell["gates"] is None and cell["resolution"] is None and len(cell["cascade"]) == looks
    assert len({look["resolution"] for look in cell["cascade"]}) == looks
    assert [look["weight"] for look in cell["cascade"]] == [4.0**look for look in range(looks)]


@pytest.mark.parametrize("method", ["cascade", "cascade-together", "cascade-every", "cascade-every-fixed"])
def test_a_cascade_is_tuned_look_by_look(place, monkeypatch, method):
    monkeypatch.setattr("hf_dynvit.training.looks.MOST_SPLIT", 0.6)  # less is out of reach of this small model
    fixed = method.endswith("-fixed")
    last = 0.9 if fixed else 1.0  # asked for all, what merges as often in every image costs 1.013 there
    every = [0.4, 0.6, last]
    monkeypatch.setattr("hf_dynvit.training.looks.EVERY", every)
    words = ["--methods", method, "--budgets", "0.7", "--tune", "true", "--seeds", "1"]
    with pytest.raises(ValueError, match="hold out a part of train to calibrate it on"):
        run_board(place, method, *words)
    words += ["--validation_fraction", "0.2"]
    trained, build = [], leaderboard_tuning.DynViTTrainer
    monkeypatch.setattr(
        leaderboard_tuning, "DynViTTrainer", lambda **given: trained.append(given["args"]) or build(**given)
    )
    cells, together = run_board(place, method, *words)["cells"], method != "cascade"
    assert [args.looks_together for args in trained] == [together]
    assert [cell["tuned"] for cell in cells] == ([True] if together else [False, True])  # untrained they are the same
    expected = every if method.startswith("cascade-every") else [0.4, 1.0]
    for cell in cells:
        found = [look["budget"] for look in cell["cascade"]]  # of fixed merges what they cost
        assert found == pytest.approx(expected, abs=0.06 if fixed else 1e-6)
        assert all(len(entry.get("merged") or []) == fixed * len(expected) for entry in cell["gates"])
        assert cell["cost"] == pytest.approx(0.7, abs=0.2) and cell["resolution"] is None
    assert f"at {found[0]:g}," in (place.folder / method / "leaderboard.md").read_text()
    with pytest.raises(ValueError, match="looks_together is what the method says: take 'cascade-together'"):
        run_board(place, method, *words, "--looks_together", "true")


def test_gates_are_placed_where_they_harm_least(tiny_vit, monkeypatch):
    assert places(12)[0] == [3, 6, 9] and places(12)[-1] == [1, 2, 3] and len(places(12)) == 9
    assert places(10)[:2] == [[2, 5, 7], [2, 4, 6]] and places(4) == [[1, 2, 3]] and places(2) == [[1]]
    torch.manual_seed(3)
    vit, pixels = tiny_vit(8), images(8)
    with torch.no_grad():
        wanted = [DynViTForImageClassification.from_vit(vit).eval()(pixels).logits]
    chosen = prepare("evit-placed", vit, 0.5, [pixels])
    distances = {}
    for place in places(8):
        monkeypatch.setattr("hf_dynvit.training.method_models.places", lambda depth, place=place: [place])
        alone = prepare("evit-placed", vit, 0.5, [pixels]).eval()
        assert alone.config.gates[0]["layers"] == place
        assert mean_cost(alone, [pixels]) == pytest.approx(0.5, abs=0.03)
        distances[tuple(place)] = trial(None, alone, wanted, [pixels]).distance
    assert len(set(distances.values())) == 4
    assert tuple(chosen.config.gates[0]["layers"]) == min(distances, key=distances.get) != (2, 4, 6)
    with pytest.raises(OutOfReach, match="a budget of 0.05 is out of reach of evit-placed"):
        prepare("evit-placed", vit, 0.05, [pixels])
    with pytest.raises(ValueError, match="is placed, which goes with an amount .* and nothing else"):
        register_method("elsewhere", METHODS["evit-placed"]._replace(resizes="chosen"))


def test_the_place_of_what_draws_is_the_same_in_each_start(tiny_vit):
    vit, pixels = tiny_vit(8), images(4)
    chosen = []
    for seed in range(3):
        torch.manual_seed(seed)
        chosen.append(prepare("random-merge-placed", vit, 0.5, [pixels]).config.gates)
        assert torch.initial_seed() == seed
    assert chosen[1:] == chosen[:-1]


def test_a_cascade_and_its_unlearned_twin_have_the_same_looks(tiny_vit, monkeypatch):
    built = []

    def choose(dense, build, config, budget, batches, count):
        built.append(build(24, budget))
        return looks_for(config, budget, True, count)

    monkeypatch.setattr("hf_dynvit.training.method_models.choose_looks", choose)
    names = ("cascade", "cascade-unlearned", "cascade-together", "cascade-fixed")
    models = [prepare(name, tiny_vit(12), 0.7, [images(6)]) for name in names]
    learned = [[gate.score.weight.abs().sum() > 0 for gate in model.learned_gates()] for model in (*built, *models)]
    assert all(all(weights) for weights in [*learned[:5], *learned[6:]]) and not any(learned[5])
    looks = [[(look["resolution"], look["budget"]) for look in model.config.cascade] for model in models]
    assert looks[0] == looks[1] == looks[2] == [(side, pytest.approx(cost, abs=0.05)) for side, cost in looks[3]]
    assert not any("merged" in entry for entry in built[-1].config.gates)


def test_models_of_an_earlier_board_are_measured_on_other_pixels(place, monkeypatch):
    words = ["--budgets", "0.7", "--tune", "true", "--untrained", "false", "--seeds", "1"]
    words += ["--validation_fraction", "0.4", "--freeze_gates_at", "0", "--methods", "merge"]
    first = run_board(place, "uncropped", *words)
    earlier = str(place.folder / "uncropped")
    monkeypatch.setattr(leaderboard_tuning.DynViTTrainer, "train", lambda trainer: pytest.fail("nothing is trained"))
    (was,), (same,) = first["cells"], run_board(place, "same", *words, "--trained", earlier)["cells"]
    facts = {"trained_commit": first["commit"], "trained_command": first["command"]}
    assert facts.items() <= same.items() and not facts.items() <= was.items()
    weights = [
        DynViTForImageClassification.from_pretrained(place.folder / name / "merge_0.7_1").state_dict()
        for name in ("uncropped", "same")
    ]
    for name, weight in weights[0].items():  # what ends the training finds the same on the same pixels
        assert torch.allclose(weight, weights[1][name], atol=1e-5), name
    assert same["accuracy"] == was["accuracy"] and same["cost"] == pytest.approx(was["cost"], abs=1e-3)
    cropped = run_board(place, "cropped", *words, "--trained", earlier, "--crop_pct", "0.6")
    assert cropped["cells"][0]["cost"] != same["cost"] and cropped["cells"][0]["trained_command"] == first["command"]
    kept = json.loads((place.folder / "cropped" / "merge_0.7_1" / "preprocessor_config.json").read_text())
    assert kept["do_center_crop"] and kept["size"]["shortest_edge"] == 53
    boards = [read(place.folder / name / "leaderboard.json", published=True) for name in ("uncropped", "cropped")]
    assert [board.crop_pct for board in boards] == [None, 0.604]  # 32 of 53 pixels
    assert [name.partition("steps, ")[2] for name, _ in named(boards)] == ["whole images", "the middle 0.6 of images"]
    parts = [str(place.folder / name / "leaderboard.json") for name in ("uncropped", "cropped")]
    with pytest.raises(ValueError, match=r"another recipe than .*: \['crop_pct'\] differ"):
        merge.main(["--parts", *parts, "--output", str(place.folder / "all")])


def test_looks_of_an_earlier_board_count_as_today(place, monkeypatch):
    words = ["--methods", "cascade-resized", "--budgets", "0.7", "--tune", "true", "--validation_fraction", "0.2"]
    run_board(place, "alike", *words)
    folder = place.folder / "alike"
    for file in (folder / "leaderboard.json", folder / "cascade-resized_0.7_0" / "config.json"):  # as they were before
        content = json.loads(file.read_text())
        for holder in content.get("cells", [content]):
            holder["cascade"] = [{name: look[name] for name in ("resolution", "budget")} for look in holder["cascade"]]
        file.write_text(json.dumps(content))
    monkeypatch.setattr(leaderboard_tuning.DynViTTrainer, "train", lambda trainer: pytest.fail("nothing is trained"))
    given = [*words, "--untrained", "false"]
    (cell,) = run_board(place, "today", *given, "--trained", str(folder))["cells"]
    assert [look["weight"] for look in cell["cascade"]] == [1, 4]
    model = DynViTForImageClassification.from_pretrained(place.folder / "today" / "cascade-resized_0.7_0")
    assert model.config.cascade == cell["cascade"] and model.config.budget_confidences
    with pytest.raises(ValueError, match=r"at 0.7, seed 0, count alike, as they no longer do for a new seed \[1\]"):
        run_board(place, "alike", *given, "--seeds", "0", "1")


def test_models_that_an_earlier_board_lacks_are_named(place):
    words = ["--methods", "resized", "--budgets", "0.7", "--tune", "true"]
    run_board(place, "lacking", *words, "--seeds", "1")
    given = ["--trained", str(place.folder / "lacking")]
    with pytest.raises(ValueError, match=r"trained \['.*lacking'\] have no model resized_0.7_2"):
        run_board(place, "lacked", *words, "--seeds", "2", *given)
    with pytest.raises(ValueError, match=r"lacking holds cells of another recipe, \['max_steps'\] differ"):
        run_board(place, "lacked", *words, "--seeds", "1", *given, "--max_steps", "2")
    with pytest.raises(ValueError, match=r"seeds \[1, 2\] are of trainings: give --tune true"):
        run_board(place, "lacked", *words[:4], "--seeds", "1", "2")
    with pytest.raises(ValueError, match=r"trained \['.*'\] are in place of training: give --tune true"):
        run_board(place, "lacked", *words[:4], *given)


def test_parts_of_a_board_become_one_file_unless_their_recipes_differ(place):
    words = ["--methods", "resized", "--budgets", "0.7", "--tune", "true", "--seeds"]
    run_board(place, "first", *words, "1")
    run_board(place, "second", *words, "2")
    parts = [str(place.folder / name / "leaderboard.json") for name in ("first", "second")]
    merged = merge.main(["--parts", *parts, "--output", str(place.folder / "both")])
    seeds = [(cell["tuned"], cell["seed"]) for cell in merged["cells"]]
    assert seeds == [(False, 0), (True, 1), (True, 2)]  # the untrained one is in both
    assert read(place.folder / "both" / "leaderboard.json", published=True).to_json() == merged
    run_board(place, "longer", *words, "3", "--max_steps", "2")
    longer = str(place.folder / "longer" / "leaderboard.json")
    with pytest.raises(ValueError, match=r"tuned by another recipe than .*: \['max_steps'\] differ"):
        merge.main(["--parts", *parts, longer, "--output", str(place.folder / "all")])
    with pytest.raises(ValueError, match="already holds a comparison"):
        merge.main(["--parts", *parts, "--output", str(place.folder / "both")])


def test_cells_of_another_checkpoint_are_refused(place):
    run_board(place, "first", "--methods", "resized", "--budgets", "0.7")
    file = place.folder / "first" / "leaderboard.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model": "another"}))
    with pytest.raises(ValueError, match="holds cells of another model, 'another'"):
        run_board(place, "first", "--methods", "tome", "--budgets", "0.7")


def test_cells_of_another_recipe_are_refused(place):
    words = ["--methods", "resized", "--budgets", "0.7", "--tune", "true"]
    run_board(place, "recipes", *words)
    assert len(run_board(place, "recipes", *words, "--seeds", "0", "1")["cells"]) == 3
    with pytest.raises(ValueError, match=r"holds cells of another recipe, \['learning_rate'\] differ"):
        run_board(place, "recipes", *words, "--learning_rate", "0.5")
    with pytest.raises(ValueError, match=r"holds cells of another recipe, \['images'\] differ"):
        run_board(place, "recipes", *words, "--images", "6")
    file = place.folder / "recipes" / "leaderboard.json"
    content = json.loads(file.read_text())
    known = content["settings"]["training"].pop("harm_per_image")  # written before there was such an option
    file.write_text(json.dumps(content))
    assert known is True and len(run_board(place, "recipes", *words)["cells"]) == 3
    content = json.loads(file.read_text())
    del content["settings"]["training"]["max_steps"]  # which the recipe gives, and its default is another
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"holds cells of another recipe, \['max_steps'\] differ"):
        run_board(place, "recipes", *words)


def test_gates_that_are_nothing_untrained_are_taught_though_the_recipe_freezes_gates(place):
    words = ["--methods", "dynamicvit", "cropr", "adavit", "avit", "diffrate", "--budgets", "0.8", "--tune", "true"]
    run_board(place, "taught", *words, "--freeze_gates_at", "0", "--tuning_budgets", "0.7", "--max_steps", "2")
    for method in ("dynamicvit", "cropr", "adavit", "avit", "diffrate"):
        model = DynViTForImageClassification.from_pretrained(place.folder / "taught" / f"{method}_0.8_0")
        gates = [gate for gate in model.learned_gates() if not torch.equal(gate.score.weight, gate.score.weight * 0)]
        assert gates, method  # scores begin at 0
        if method == "diffrate":  # whose score learns nothing: one rate for all layers, until each has learned its own
            assert len({gate.score.bias.item() for gate in gates}) > 1


@pytest.mark.parametrize("method", check_methods(["all"], False))
def test_every_method_meets_a_budget(tiny_vit, method):
    batches = [images(6)]
    model = prepare(method, tiny_vit(12), 0.75, batches)
    assert mean_cost(model, batches) == pytest.approx(0.75, abs=0.2)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"methods must be 'all' alone or of .*, got \['x'\]"):
        check_methods(["x"], tuned=False)
    with pytest.raises(ValueError, match="are nothing of their own before they are trained"):
        check_methods(["dynamicvit"], tuned=False)
    assert "dynamicvit" in check_methods(["all"], tuned=True) and "dynamicvit" not in check_methods(["all"], False)


def test_a_budget_out_of_reach_is_named(tiny_vit):
    with pytest.raises(ValueError, match="a budget of 0.01 is out of reach of evit: its costs are"):
        prepare("evit", tiny_vit(12), 0.01, [images(2)])


@pytest.mark.parametrize("method", ["merge-fixed", "merge-resized-fixed"])
def test_fixed_merges_are_as_many_in_every_image_untrained_and_tuned(place, method):
    words = ["--methods", method, "--budgets", "0.7", "--tune", "true"]
    for cell in run_board(place, method, *words)["cells"]:
        assert cell["cost"] == pytest.approx(0.7, abs=0.1) and cell["cost_std"] == pytest.approx(0, abs=1e-6)
        assert all(type(entry["merged"]) is int and len(entry["layers"]) == 1 for entry in cell["gates"])
    model = DynViTForImageClassification.from_pretrained(place.folder / method / f"{method}_0.7_0")
    assert any(gate.score.weight.abs().max() > 0 for gate in model.learned_gates())
    assert program_of(model) is not None


def test_all_methods_of_a_board_have_the_last_layer_that_the_recipe_says(place):
    words = ["--methods", "resized", "tome", "--budgets", "0.7", "--last_layer", "read"]
    for cell, tuned in zip(
        run_board(place, "read", *words, "--tune", "true")["cells"], (False, True) * 2, strict=True
    ):
        assert cell["tuned"] == tuned and cell["cost"] == pytest.approx(0.7, abs=0.2)  # sizes are few
    for method in ("resized", "tome"):
        config = DynViTForImageClassification.from_pretrained(place.folder / "read" / f"{method}_0.7_0").config
        assert config.last_layer == "read"
    cells = run_board(place, "dense_read", "--methods", "dense", *words[3:], "--tune", "true")["cells"]
    assert [cell["cost"] for cell in cells if cell["method"] == "dense"] == [1.0] * len(cells)  # tuned, too


def test_a_cascade_of_fixed_merges_is_one_after_its_training_and_compiles(place):
    words = ["--methods", "cascade-fixed", "--budgets", "0.8", "--tune", "true", "--validation_fraction", "0.2"]
    cells = run_board(place, "fixed_looks", *words)["cells"]
    for cell in cells:
        assert cell["cost"] == pytest.approx(0.8, abs=0.2) and all(
            len(entry["merged"]) == 2 for entry in cell["gates"]
        )
    model = DynViTForImageClassification.from_pretrained(place.folder / "fixed_looks" / "cascade-fixed_0.8_0")
    assert all(len(cell["looks"]["accuracy"]) == 2 for cell in cells)
    assert model.config.gates == cells[0]["gates"] == cells[1]["gates"] and model.config.budget_confidences is not None
    assert any(gate.score.weight.abs().max() > 0 for gate in model.learned_gates())
    assert program_of(model) is not None


def test_a_size_at_which_gates_do_not_reach_the_budget_is_not_taken():
    cheap, near, dear = (
        Trial(size, None, cost, distance)
        for size, cost, distance in ((16, 0.3, 0.5), (24, 0.42, 0.2), (None, 0.5, 0.1))
    )
    assert within([dear, near, cheap], 0.4) == [near, cheap] and within([dear, near], 0.3) == [near]


PLUGIN = """
from hf_dynvit import Method, Scorer, register_method, register_scorer

class Bright(Scorer):
    def score(self, tokens, state):
        return tokens.mean(-1)

def gates(config, keep):
    return [{"gate": "token", "score": "bright", "keep": keep, "layers": [1]}]

register_scorer("bright", Bright)
register_method("bright", Method(gates, 0.02, learns=True))
"""


@pytest.fixture
def shelves():
    """What a test puts on the shelves of methods and scorers is taken away again."""
    yield
    METHODS.pop("bright", None)
    SCORERS.pop("bright", None)


def test_a_method_of_ones_own_is_on_the_board_from_the_command_line(place, shelves):
    words = ["--methods", "bright", "bright", "--budgets", "0.7", "--tune", "true", "--freeze_gates_at", "0"]
    with pytest.raises(ValueError, match="must be 'all' alone or of .*, got \\['bright', 'bright'\\]"):
        run_board(place, "own", *words)
    with pytest.raises(FileNotFoundError, match="plugin must be a file of Python, there is no 'nowhere.py'"):
        run_board(place, "own", *words, "--plugin", "nowhere.py")
    file = place.folder / "bright.py"
    file.write_text(PLUGIN)
    (cell,) = run_board(place, "own", *words, f"--plugin={file}")["cells"]  # named twice, measured once
    assert cell["method"] == "bright" and cell["tuned"] and cell["gates"][0]["score"] == "bright"
    SCORERS.pop("bright")
    with pytest.raises(ValueError, match="got 'bright'; a scorer of your own has to be registered first"):
        DynViTForImageClassification.from_pretrained(place.folder / "own" / "bright_0.7_0")


def test_a_method_that_cannot_cost_a_budget_is_left_out_and_the_others_stand(place, capsys):
    found = run_board(place, "left_out", "--methods", "evit", "resized", "--budgets", "0.05", "0.7")["cells"]
    assert [(cell["method"], cell["budget"]) for cell in found] == [
        ("resized", 0.05),
        ("evit", 0.7),
        ("resized", 0.7),
    ]
    said = capsys.readouterr().out
    assert "left out: a budget of 0.05 is out of reach of evit: its costs are" in said
    assert "3 cells, their table and plot:" in said and (place.folder / "left_out" / "leaderboard.png").exists()
    new = ["--new_classifier", "true", "--teacher", "none"]
    with pytest.raises(
        ValueError, match="a board begins with what a checkpoint knows, and new_classifier replaces that"
    ):
        run_board(place, "left_out", "--methods", "evit", "--budgets", "0.7", *new)
