"""Figures in the prose of the READMEs are those of the stored results."""

import statistics

import pytest
import torch
from places import ROOT

from hf_dynvit import DynViTConfig, DynViTForImageClassification, report
from hf_dynvit.report.dials import dial_items
from hf_dynvit.report.every_budget import every_rows
from hf_dynvit.report.leaderboard_gains import gain_rows
from hf_dynvit.report.rivals import percent


RECIPES, RESULTS = ROOT / "recipes" / "README.md", ROOT / "recipes" / "results"


def said(file=RECIPES):
    """A README without its line breaks."""
    return " ".join(file.read_text(encoding="utf-8").split())


def of(name):
    file = RESULTS / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{file} is not stored")
    return report.read(file)


def one_sided(gains):
    """p of three gains being 0 or less: Student's t with two degrees of freedom has a closed form."""
    assert len(gains) == 3
    t = statistics.mean(gains) / statistics.stdev(gains) * 3**0.5
    return 0.5 - t / (2 * (2 + t * t) ** 0.5)


def test_what_the_policies_of_cifar_10_gain_over_static_masks():
    gains, plain = [], []
    for seed in range(3):
        learned = of(f"eval_cifar_learned_{seed}" if seed else "eval_cifar_learned")
        dear, cheap = of(f"eval_cifar_static_{seed}"), of(f"eval_cifar_static50_{seed}")
        assert {one.dtype for one in (learned, dear, cheap)} == {"float32"} and cheap.cost < learned.cost < dear.cost
        share = (learned.cost - cheap.cost) / (dear.cost - cheap.cost)
        gains.append(100 * (learned.accuracy - cheap.accuracy - share * (dear.accuracy - cheap.accuracy)))
        plain.append(100 * (learned.accuracy - dear.accuracy))
    each = "{:.2f}, {:.2f} and {:.2f} points".format(*gains)
    assert f"each policy gains {each}, all in float32" in said()
    summary = f"{statistics.mean(gains):.2f} ± {statistics.stdev(gains):.2f}"
    assert f"{summary}, in a one-sided t-test p {one_sided(gains):.2f}." in said()
    over = f"{statistics.mean(plain):.2f} ± {statistics.stdev(plain):.2f}"
    assert f"Over the dearer masks as they are it gains {over}" in said()


def test_what_a_threshold_per_image_is_worth():
    cells = [cell for cell in of("board_photos").cells if cell.tuned and cell.budget == 0.5]
    found = {name: [100 * cell.accuracy for cell in cells if cell.method == name] for name in ("merge", "merge-fixed")}
    assert all(len(tops) == 3 for tops in found.values())
    difference = statistics.mean(found["merge"]) - statistics.mean(found["merge-fixed"])
    deviation = sum(map(statistics.variance, found.values())) ** 0.5
    gain = f"{difference:.2f} ± {deviation:.2f} points"
    assert f"A threshold for each image (`merge`) is {gain} better than as many merges in every image" in said()


def test_what_the_clock_chooses():
    found = of("points_photos")

    def clocks(first, second, size):
        return [getattr(second, name)[size] / getattr(first, name)[size] for name in ("ms", "ms_reported")]

    same, saved = set(), {}
    for choice in found.choices:
        by_cost, as_near = found.points[choice.by_cost], found.points[choice.as_near]
        if choice.by_cost == choice.in_time == choice.as_near:
            same.add((choice.budget, choice.batch_size))
        if choice.batch_size == 1 and choice.budget != 0.5:
            assert max(clocks(by_cost, as_near, "1")) < 0.95 and as_near.budget is None  # by both clocks
            assert (as_near.resolution is None) == (choice.budget > 0.5)
            saved[choice.budget] = f"{clocks(by_cost, as_near, '1')[1]:.2f}"
    assert f"in {saved[0.4]} of their time at 0.4 and in {saved[0.3]} at 0.3" in said()
    assert {budget for budget, size in same if size == 8} == {0.65, 0.5}
    assert {budget for budget, size in same if size == 32} == {0.65, 0.5, 0.4, 0.3}


def test_what_half_of_the_computation_costs_without_training():
    board = of("board_tiny")
    at_half = {cell.method: cell for cell in board.cells if not cell.tuned and cell.budget == 0.5}
    dense, merge, tome = board.dense, at_half["merge"], at_half["tome"]
    assert abs(merge.cost - tome.cost) < 0.005 and board.split_files == ["validation.parquet"]
    tops = [f"{100 * one.accuracy:.2f}" for one in (dense, merge, tome)]
    assert "{} becomes {}, with ToMe at the same cost {}".format(*tops) in said(ROOT / "README.md")


def test_what_the_agent_learns_on_cifar_10():
    tops = {}
    for run in of("agents_cifar_twins").runs:
        options = run.agent.options if run.agent else {}
        tops.setdefault(options.get("credit", "dense"), []).append(100 * run.accuracy)
    assert all(len(tops[credit]) == 2 for credit in ("pairs", "none", "saliency"))
    reached = {
        credit: f"{statistics.mean(tops[credit]):.2f} ± {statistics.stdev(tops[credit]):.2f}"
        for credit in tops
        if credit != "dense"
    }
    sentence = "with two seeds it has {pairs}, the twin {none}, and what is taught by saliency {saliency} (`agents_cifar_twins`)"
    assert sentence.format(**reached) in said()


def test_what_the_agent_learns_on_photos():
    runs = {run.variant: run for run in of("agents_photos_twins").runs}
    dense = runs["none"]

    def words(variant):
        run = runs[variant]
        return f"{100 * run.accuracy:.2f}", f"{run.train_seconds / dense.train_seconds:.2f}"

    names = ("agentvit-plus", "agentvit-plus:credit=none", "agentvit-plus:credit=saliency", "none:max_steps=95")
    pairs, twin, saliency, fewer = map(words, names)
    assert (
        f"it has {pairs[0]} in {pairs[1]} of the dense model's time, the twin {twin[0]} in {twin[1]}, by saliency {saliency[0]} in "
        f"{saliency[1]}, the dense model {100 * dense.accuracy:.2f}, and {fewer[0]} in as few steps as take {fewer[1]}"
    ) in said()


def test_what_importance_is_worth_alone_and_in_a_cascade():
    board = of("board_photos")

    def tops(method, budget):
        return [
            100 * cell.accuracy
            for cell in board.cells
            if (cell.method, cell.budget, cell.tuned) == (method, budget, True)
        ]

    gains = [statistics.mean(tops("merge", at)) - statistics.mean(tops("merge-unlearned", at)) for at in (0.5, 0.3)]
    assert "{:+.2f} points at half of the computation, {:+.2f} at three tenths".format(*gains) in said()
    small = [
        statistics.mean(tops("merge-resized", at)) - statistics.mean(tops("merge-resized-unlearned", at))
        for at in (0.4, 0.3)
    ]
    assert "as small as is best {:+.2f} at four tenths and {:+.2f} at three".format(*small) in said()
    worth = []
    for budget in (0.5, 0.4, 0.3):
        learned, twin = tops("cascade", budget), tops("cascade-unlearned", budget)
        assert len(learned) == len(twin) == 3
        deviation = (statistics.variance(learned) + statistics.variance(twin)) ** 0.5
        worth.append(f"{statistics.mean(learned) - statistics.mean(twin):+.2f} ± {deviation:.2f}")
    assert (
        "In a cascade it is worth {} at half, {} at four tenths and {} at three, three seeds".format(*worth) in said()
    )

    def cost(method, budget):
        found = [cell.cost for cell in board.cells if (cell.method, cell.budget, cell.tuned) == (method, budget, True)]
        return statistics.mean(found)

    costs, twin = [cost(name, 0.4) for name in ("cascade", "cascade-unlearned")], "cascade-unlearned"
    share = (costs[0] - costs[1]) / (cost(twin, 0.5) - costs[1])
    low, high = (statistics.mean(tops(twin, budget)) for budget in (0.4, 0.5))
    on_line = f"{statistics.mean(tops('cascade', 0.4)) - low - share * (high - low):+.2f}"
    at = "At four tenths it costs {:.3f} against {:.3f}; on the line between the costs of its twin the gain is {}."
    assert at.format(*costs, on_line) in said()
    front = "is worth {1} points in it at four tenths of the computation ({gain} at the same cost) and {2} at three;"
    assert front.format(*worth, gain=on_line) in said(ROOT / "README.md")
    assert f"and {worth[2]} at three; at half {worth[0]}," in said(ROOT / "README.md")

    rows = {(row["method"], row["budget"]): row["over its twin"] for row in gain_rows(board)}
    together, every = rows["cascade-together", 0.5], rows["cascade-every", 0.4]
    words = (
        f"If the looks learn together (`cascade-together`) it is worth {together.split(' (')[0]} at half, three seeds of both, and "
        f"turned to four tenths nothing; with three looks (`cascade-every`) {every.split(' (')[0]} at four tenths, one seed of the twin."
    )
    assert words in said() and together.endswith("(3 seeds))") and "seeds" not in every
    turned = [
        [
            100 * at.accuracy
            for cell in board.cells
            if cell.method == name and cell.budget == 0.5
            for at in cell.looks.at
            if at.budget == 0.4
        ]
        for name in ("cascade-together-unlearned", "cascade-together")
    ]
    pair = " against ".join(f"{statistics.mean(tops):.2f} ± {statistics.stdev(tops):.2f}" for tops in turned)
    assert f"and where looks learn together a cascade without it has {pair} at four tenths." in said(
        ROOT / "README.md"
    )


def test_what_cascades_reach_beside_the_dense_model():
    board, longer = of("board_photos"), of("board_photos_300")

    def words(tops):
        return f"{statistics.mean(tops):.2f} ± {statistics.stdev(tops):.2f}"

    def turned(method, trained_for, budget):
        cells = [cell for cell in board.cells if (cell.method, cell.budget) == (method, trained_for) and cell.tuned]
        assert len(cells) == 3
        return words([100 * at.accuracy for cell in cells for at in cell.looks.at if at.budget == budget])

    dense = [100 * cell.accuracy for cell in board.cells if cell.method == "dense" and cell.tuned]
    (twice,) = [100 * cell.accuracy for cell in longer.cells if cell.method == "dense"]
    every = [turned("cascade-every", 0.4, budget) for budget in (0.5, 0.4, 0.3)]
    sentence = (
        "On photos one whose two looks learn together has {} at half of the computation, and one of three looks, turned to each "
        "budget, {} there, {} at four tenths and {} at three; the dense model tuned by the same recipe has {}, and in twice the steps "
        "{:.2f} (one seed)."
    )
    assert sentence.format(turned("cascade-together", 0.5, 0.5), *every, words(dense), twice) in said(
        ROOT / "README.md"
    )


def test_what_one_cascade_for_every_budget_loses():
    rows = [row for row in every_rows([of("board_photos")]) if row["method"] == "cascade-every"]
    worth = [f"{row['difference']} at {row['budget']}" for row in rows]
    assert f"on the photos the differences are {', '.join(worth[:-1])} and {worth[-1]}." in said()
    fixed = [row for row in every_rows([of("board_photos")]) if row["method"] == "cascade-every-fixed"]
    worth, costs = [row["difference"] for row in fixed], [row["top-1 at cost"].split(" at ")[1] for row in fixed]
    assert (
        f"(`cascade-every-fixed`, one seed) they are {', '.join(worth[:-1])} and {worth[-1]}, at costs of {', '.join(costs[:-1])} "
        f"and {costs[-1]}." in said()
    )
    worst = min(float(row["difference"].split()[0]) for row in rows)
    assert rows[-1]["budget"] == 0.3 and f"at most {-worst:.2f} points below the best model of each" in said(
        ROOT / "README.md"
    )


def test_what_fixed_places_leave_to_save():
    (evit,) = [
        cell for cell in of("board_photos").cells if (cell.method, cell.budget, cell.tuned) == ("evit", 0.3, True)
    ]
    (gate,) = evit.gates
    config = {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "gates": [{**gate, "keep": 0.005}],
    }
    with torch.no_grad():
        least = DynViTForImageClassification(DynViTConfig(**config)).eval()(torch.zeros(1, 3, 224, 224)).cost.item()
    assert gate["layers"] == [3, 6, 9] and round(gate["keep"], 2) == 0.1
    assert f"so a ViT-Ti costs {least:.2f} whatever they keep: at 0.3 `evit` keeps a tenth of the tokens" in said()
    cells = [cell for cell in of("board_photos").cells if cell.tuned and cell.budget == 0.3]
    names = ("evit-placed", "evit", "topk-merge-placed", "tome", "merge")
    runs = {name: [cell for cell in cells if cell.method == name] for name in names}
    words = (
        "(`-placed`, at 0.3 before layers 2, 4 and 6) `evit` has {} in place of {}, and `topk-merge` {}, where `tome` has {} and "
        "`merge` {}."
    )
    assert words.format(*(percent(runs[name]) for name in names)) in said()
    assert {tuple(runs[name][0].gates[0]["layers"]) for name in names if name.endswith("-placed")} == {(2, 4, 6)}


def test_what_gates_learn_in_so_few_steps():
    cells = [cell for cell in of("board_photos").cells if cell.tuned and cell.budget == 0.5]
    tops = {cell.method: f"{100 * cell.accuracy:.2f}" for cell in cells if cell.seed == 0}
    words = (
        "`diffrate` has {diffrate}, `cropr` {cropr}, `dynamicvit` {dynamicvit} and `avit` {avit}, one seed; as many tokens by attention's order "
        "have {topk} (`topk`) and at random {random-tokens} (`random-tokens`)."
    )
    assert words.format(**tops) in said()


def test_what_640_steps_reach_on_tiny_imagenet():
    (dense,) = [cell for cell in of("board_tiny_640").cells if cell.method == "dense" and cell.tuned]
    half, more = (of(f"eval_tiny_640_{asked}") for asked in (0.46, 0.6))
    gains = [100 * (one.accuracy - dense.accuracy) for one in (half, more)]
    words = [
        f"{100 * one.accuracy:.2f} at {one.cost:.3f} ({gain:+.2f})"
        for one, gain in zip((half, more), gains, strict=True)
    ]
    text = "has {} and {}, the dense model in as many steps {:.2f}. On these images it costs more than it is asked for"
    assert text.format(*words, 100 * dense.accuracy) in said()
    assert f"the budgets asked for are {half.budget} and {more.budget}." in said()
    assert f"and {-gains[0]:.2f} points after 640 whose looks learn together (one seed)" in said(ROOT / "README.md")


def test_what_teaches_importance():
    taught = [of(f"photos_taught_{name}") for name in ("auxiliary", "reinforce")]
    words = [f"{100 * one.accuracy:.2f} at {one.cost:.3f}" for one in taught]
    tops = {}
    for cell in of("board_photos").cells:
        if cell.tuned and cell.budget == 0.5:
            tops.setdefault(cell.method, []).append(100 * cell.accuracy)
    words += [
        f"{statistics.mean(tops[name]):.2f} ± {statistics.stdev(tops[name]):.2f}"
        for name in ("merge", "merge-unlearned")
    ]
    sentence = (
        "auxiliary head {}, by policy gradient {}, where the closed form has {} and merging without importance {}."
    )
    assert sentence.format(*words) in said()


def test_what_one_model_for_every_budget_costs():
    results = [of("photos_dial_0"), *(of(f"eval_photos_dial_0_{budget}") for budget in (0.65, 0.5, 0.4, 0.3))]
    items = dial_items(results[:1], results[1:], [of("board_photos")])
    lost = [100 * (statistics.mean(cell.accuracy for cell in cells) - one.accuracy) for one, cells in items]
    assert len(lost) == 4 and f"It is {min(lost):.2f} to {max(lost):.2f} points below models" in said()


def test_what_whole_images_cost_on_the_photos():
    middle, whole = of("board_photos").cells, of("board_photos_whole").cells

    def tops(cells, method, budget):
        found = [cell for cell in cells if (cell.method, cell.budget, cell.tuned) == (method, budget, True)]
        return {cell.seed: 100 * cell.accuracy for cell in found}

    dense = [tops(cells, "dense", 1.0) for cells in (middle, whole)]
    assert all(len(seeds) == 3 for seeds in dense)
    # The same trained model; `tome` and `merge-fixed` were trained anew for the middle of images, looks of cascades count otherwise.
    lost = tops(middle, "merge", 0.5)[0] - tops(whole, "merge", 0.5)[0]
    mean = statistics.mean(dense[0].values()) - statistics.mean(dense[1].values())
    words = (
        f"whole images cost the tuned dense model {mean:.1f} points (three seeds), and `merge` {lost:.1f} at half of the "
        f"computation with the first seed, the dense model {dense[0][0] - dense[1][0]:.1f}."
    )
    assert words in said()
