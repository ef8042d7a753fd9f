"""The demo trains, measures and writes what it says, and prints nothing but what it measured."""

import json
import time

import pytest
import torch
from recipe_place import script
from transformers import AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure.dense import dense_calls
from hf_dynvit.measure.trained_models import dense_vit
from hf_dynvit.report.demo import LEAST, MOST, plan
from hf_dynvit.report.schema import read


TINY = ["--validation", "32", "--steps", "4", "--seconds", "0.1"]


@pytest.fixture(scope="module")
def demo():
    module = script("demo")
    module.SIZE, module.WIDTH = 48, 48  # the demo in small
    return module


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """One tiny run: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.main([*TINY, "--output", str(folder)])


def test_it_writes_a_model_that_loads_with_card_picture_and_results(run):
    folder, results = run
    assert (folder / "decisions.png").stat().st_size > 1000
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    card = (folder / "README.md").read_text()
    assert "decisions.png" in card and f"{100 * results['accuracy']:.2f} %" in card
    model = DynViTForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    image = torch.zeros(3, 40, 40, dtype=torch.uint8).numpy()
    out = model(**processor(image, return_tensors="pt"))
    assert out.logits.shape == (1, 10) and model.config.budget == results["budget"]


def test_the_numbers_of_the_table_come_from_results_json(demo, run):
    results = read(run[0] / "results.json")
    results.accuracy, results.dense.gmacs = 0.123, 0.0321
    results.throughput[0].packed_ms, results.throughput[0].speedup = 45.67, 8.9
    lines = demo.summary(results).splitlines()
    dense, packed, ratio = ([cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:])
    assert dense == [
        f"{results.dense.accuracy:.1%}",
        "32.1",
        *(f"{min(speed.dense_ms.values()) / speed.batch_size:.2f}" for speed in results.throughput),
    ]
    assert packed[0] == "12.3%" and packed[2] == "45.67"
    assert ratio[2] == "8.90 x as fast"


def test_what_it_measures_is_consistent(run):
    _, results = run
    assert results["gmacs"] == pytest.approx(results["cost"] * results["dense"]["gmacs"])
    assert results["dense"]["cost"] == pytest.approx(1)
    assert [timed["batch_size"] for timed in results["throughput"]] == [1, 32]
    for timed in results["throughput"]:
        assert set(timed["dense_ms"]) == {"eager", "sdpa", "ours, no gates"}  # the fastest is the one to beat
        assert timed["dense_ms"][timed["fastest"]] == min(timed["dense_ms"].values())
        assert timed["speedup"] == pytest.approx(min(timed["dense_ms"].values()) / timed["packed_ms"])


def test_the_dense_model_to_beat_is_one_model_in_three_ways(run):
    model = DynViTForImageClassification.from_pretrained(run[0])
    dense = dense_vit(model)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        logits = {name: way(images).logits for name, way in dense_calls(dense, compiled=False).items()}
    for name, given in logits.items():
        torch.testing.assert_close(given, logits["eager"], rtol=0, atol=1e-4, msg=name)


def test_a_slow_machine_gets_fewer_steps_within_bounds():
    fast, slow, slowest = (plan(step, 1.4 * step, 150, 1000, 16) for step in (0.01, 0.3, 5.0))
    assert fast.steps == MOST and slowest.steps == LEAST and LEAST < slow.steps < MOST
    assert slow.steps * (0.3 + 1.4 * 0.3) + 1000 / 16 * 0.3 / 3 <= 150  # with the forwards afterwards
    assert "what fits into 180 s" in slow.sentence(180, 16) and f"--steps {slow.steps}" in slow.sentence(180, 16)
    assert "even if it takes longer" in slowest.sentence(180, 16)


def test_steps_are_chosen_by_time_unless_given(demo, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "seconds_per_step", lambda trainer, inputs: 0.5)
    args = demo.DemoArguments(output=str(tmp_path), minutes=2.5, validation=32, seconds=1)
    chosen = demo.affordable(args, time.perf_counter())
    assert LEAST < chosen.steps < 150 and args.steps is None  # two kinds of steps, half a second each
    assert f"{chosen.steps} steps" in capsys.readouterr().out


def test_the_same_steps_give_the_same_model(demo, run, tmp_path):
    again = demo.main([*TINY, "--output", str(tmp_path)])
    for measured in ("accuracy", "cost", "by_difficulty", "usage"):
        assert again[measured] == run[1][measured]


def test_it_can_be_run_again_but_spares_other_models(demo, run, tmp_path):
    demo.refuse_other_runs(run[0])  # its own folder
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds another model"):
        demo.main([*TINY, "--output", str(tmp_path)])
    assert weights.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [weights]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validation", "8"], "at least 32 to be timed, got 8"),
        (["--budget", "1.5"], r"\(0, 1\], got 1.5"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--minutes", "0"], "minutes must be positive, got 0"),
        (["--image", "5"], "did you mean"),
    ],
)
def test_wrong_settings_are_refused_before_work_starts(demo, words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        demo.main([*words, "--output", str(tmp_path)])
