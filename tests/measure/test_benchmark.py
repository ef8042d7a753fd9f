"""Benchmarks: drawn decisions cost what was asked for, baselines are the dense model, reports hold what was run."""

import json

import pytest
import torch
from image_files import save_checkpoint, write_parquet
from models import gated as random_gated
from models import images
from torch.utils.data import DataLoader

from hf_dynvit.benchmark import main
from hf_dynvit.data.rows import DataArguments
from hf_dynvit.measure.dense import OURS, dense_calls
from hf_dynvit.measure.forwards import DTYPES, Setting, gated, measure
from hf_dynvit.measure.random_decisions import draw_decisions, gate_entries
from hf_dynvit.measure.trained_models import dense_vit, open_models
from hf_dynvit.report.run_results import evaluate


SETS = [("patch+sublayer", 0.6), ("patch+sublayer+head", 0.6)]


@pytest.fixture
def vit(tiny_vit):
    return tiny_vit(num_hidden_layers=4, num_labels=3)


@pytest.mark.parametrize(
    "gates, target", [("patch", 0.6), ("sublayer", 0.5), ("head", 0.98), ("patch+sublayer+head", 0.5)]
)
def test_drawn_decisions_replayed_cost_what_was_asked_for(vit, gates, target):
    model = gated(vit, gates)
    decisions = draw_decisions(model, 32, target, torch.Generator().manual_seed(0))
    with torch.no_grad():
        cost = model(images(32), decisions=decisions).cost
    assert cost.mean().item() == pytest.approx(target, abs=0.01)
    assert len(cost.unique()) > 1


def test_draws_differ_between_images_and_between_draws_and_repeat_with_the_seed(vit):
    model = gated(vit, "patch+sublayer")
    generator = torch.Generator().manual_seed(0)
    first, second = (draw_decisions(model, 4, 0.6, generator)[2].attention_tokens for _ in range(2))
    again = draw_decisions(model, 4, 0.6, torch.Generator().manual_seed(0))[2].attention_tokens
    assert len(first.unique(dim=0)) == 4
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert first[:, 0].all()  # [CLS]


def test_layers_and_units_without_a_gate_keep_everything(vit):
    decisions = draw_decisions(gated(vit, "patch"), 2, 0.6, torch.Generator())
    assert all(keep is None for keep in decisions[0])
    assert decisions[1].heads is None and decisions[1].sublayers is None


def test_a_cost_out_of_reach_is_refused(vit):
    with pytest.raises(ValueError, match=r"0\.2 is out of reach of the gates 'head'.*all shut it is 0\.\d+"):
        draw_decisions(gated(vit, "head"), 2, 0.2, torch.Generator())


@pytest.mark.parametrize("label", ["patches", "patch+patch", ""])
def test_unknown_gate_sets_are_refused(label):
    with pytest.raises(ValueError, match="distinct and of"):
        gate_entries(label, 4)


def test_baselines_share_the_weights_of_the_model_they_are_compared_with(vit):
    model, x = gated(vit, "patch+sublayer"), images(2)
    expected = vit(x).logits
    for name, dense in dense_calls(vit, compiled=False).items():
        kernel = "sdpa" if name == OURS else name
        assert dense.config._attn_implementation == kernel == dense.vit.layers[0].attention.config._attn_implementation
        assert dense.classifier.weight is model.classifier.weight is vit.classifier.weight
        torch.testing.assert_close(dense(x).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(x).logits, expected, atol=1e-5, rtol=0)


def test_the_dense_model_of_a_trained_one_is_it_with_all_gates_open(vit):
    model, x = random_gated(vit, gate_entries("patch+head", 4)).eval(), images(2)
    twin = dense_vit(model)
    assert twin.classifier.weight.data_ptr() == model.classifier.weight.data_ptr()
    torch.testing.assert_close(twin(x).logits, model(x, gating="open").logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_relate_time_to_cost(vit, dtype):
    setting = Setting(
        "small", dtype, 3, SETS, draws=2, rounds=2, seconds=1.0, compiled=False, prepacked=dtype == "float32"
    )
    rows = measure(vit.to(DTYPES[dtype]), setting, seed=0)
    assert [row.gates for row in rows] == [*dict(SETS), "all open (patch+sublayer)"]
    for row in rows:
        assert row.speedup == min(row.dense_ms.values()) / row.packed_ms
        assert row.realised == pytest.approx(row.speedup / row.predicted)
        assert row.dense_ms == rows[0].dense_ms  # all from one run
        assert (
            row.timed_cost == pytest.approx(0.6, abs=0.05) or row.gates.startswith("all open") and row.timed_cost > 1
        )


def test_replayed_forwards_run_their_gates(vit, monkeypatch):
    from hf_dynvit.model.gate_patch import PatchGate

    asked = []
    logits = PatchGate.logits
    monkeypatch.setattr(
        PatchGate, "logits", lambda self, tokens, state: asked.append(self) or logits(self, tokens, state)
    )
    measure(vit, Setting("", "float32", 2, [("patch", 0.6)], 1, 1, 1.0, False, False), seed=0)
    # 3 layers; the draw and the open model, each for its cost, twice for its memory, and timed
    assert len(asked) == 3 * 2 * 4


def test_speed_from_the_command_line(vit, tmp_path, capsys):
    vit.save_pretrained(tmp_path / "vit")
    out, plot = tmp_path / "speed.json", tmp_path / "speed.png"
    options = "--dtypes float32 bfloat16 --batch_sizes 1 2 --gates patch+sublayer head@0.98 --cost 0.6 --rounds 2 --no_compile".split()
    main(["--model", str(tmp_path / "vit"), *options, "--json", str(out), "--plot", str(plot)])
    written = json.loads(out.read_text())
    assert {"device", "threads", "versions", "commit", "command"} <= set(written) and written["seed"] == 0
    combinations = {(row["dtype"], row["batch_size"], row["gates"]) for row in written["rows"]}
    assert len(combinations) == len(written["rows"]) == 2 * 2 * 3
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(written["rows"])
    assert all(line.count("|") == table[0].count("|") for line in table)
    assert f"{written['rows'][0]['realised']:.3f}" in table[2]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_accuracy_is_that_of_each_model_on_all_images(vit, tmp_path):
    folder = save_checkpoint(tmp_path / "dense", vit)
    entrants = open_models([folder], DataArguments(data_files=write_parquet(tmp_path)))
    items = list(entrants[0].images)
    with torch.no_grad():
        best = vit(torch.stack([item["pixel_values"] for item in items])).logits.argmax(-1)
    expected = (best == torch.tensor([item["labels"] for item in items])).float().mean().item()
    found = evaluate(entrants[0].model, DataLoader(entrants[0].images, 5)).scores
    assert found.accuracy == pytest.approx(expected) and (found.cost, found.cost_std) == (1.0, 0.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--sizes huge", "sizes must be of .*'huge'"),
        ("--dtypes float8", "dtypes must be of .*'float8'"),
        ("--batch_sizes 0", "batch_sizes must be at least 1"),
        ("--rounds 0", "rounds must be at least 1"),
        ("--cost 0", r"in \(0, 1\], got 0\.0"),
        ("--gates patch@half", "KINDS@COST"),
        ("--gates patches", "distinct and of"),
        ("--gates head", "out of reach"),
        ("--json missing/folder/out.json", "cannot write"),
    ],
)
def test_bad_options_are_refused_before_anything_is_timed(options, message, monkeypatch):
    monkeypatch.setattr("hf_dynvit.benchmark.measure", None)
    with pytest.raises(ValueError, match=message):
        main(options.split())


def test_a_dtype_that_the_device_lacks_is_refused(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr("hf_dynvit.benchmark.ViTForImageClassification.forward", refuse)
    with pytest.raises(ValueError, match="float16 does not run on cpu: not implemented"):
        main(["--dtypes", "float16"])
