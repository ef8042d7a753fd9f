"""Every way to run a model: what is refused ahead, which states there are, that all predict the same, and how they are timed."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from exported_models import needs, without_the_compiler
from models import gated, images

from hf_dynvit.deploy import DynViTRuntime, export
from hf_dynvit.deploy.side_by_side import score_ways, time_ways
from hf_dynvit.deploy.ways import DENSE, FIXED, GATED, OPEN, PYTORCH, Graphs, Way, check_ways, runs_of, states
from hf_dynvit.measure.dense import AHEAD


@pytest.fixture
def model(tiny_vit):
    torch.manual_seed(0)
    return gated(tiny_vit(), [{"gate": "merge", "distance": 4.0}]).eval()


def test_a_runtime_or_number_format_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else "there")
    assert check_ways([PYTORCH, "OpenVINO"], ["float32", "bfloat16"]) == [
        (PYTORCH, "float32"),
        (PYTORCH, "bfloat16"),
        ("OpenVINO", "float32"),
        ("OpenVINO", "bfloat16"),
    ]
    with pytest.raises(ImportError, match=r"to export for openvino, \['nncf'\] must be installed"):
        check_ways([PYTORCH, "OpenVINO"], ["float32", "int8"])
    with pytest.raises(ValueError, match=r"runtimes must be of .* got \['TensorRT'\]"):
        check_ways(["TensorRT"], ["float32"])
    with pytest.raises(ValueError, match=r"precisions must be of .* got \['int4'\]"):
        check_ways([PYTORCH], ["int4"])
    with pytest.raises(ValueError, match=r"\['int8'\] is in none of \['PyTorch'\]"):
        check_ways([PYTORCH], ["float32", "int8"])


def test_open_gates_keep_everything_and_the_model_is_left_as_it_was(model):
    pixel_values = images(3)
    before = model(pixel_values).cost
    found = states(model)
    assert list(found) == [DENSE, OPEN, GATED] and found[GATED] is model
    with torch.no_grad():
        dense, opened = (found[name](pixel_values) for name in (DENSE, OPEN))
    assert (dense.logits - opened.logits).abs().max() < 1e-5
    assert len(set(dense.cost.tolist())) == 1 and 0.5 < dense.cost[0] < 1  # the last layer as it is read
    assert (opened.cost >= 1).all() and (before < 1).any()
    assert (model(pixel_values).cost == before).all()


def test_fixed_numbers_and_cascades_have_no_open_state(tiny_vit):
    assert list(states(gated(tiny_vit(), [{"gate": "tome", "merged": 2}]).eval())) == [DENSE, GATED]
    looks = gated(tiny_vit(), [{"gate": "merge", "distance": 4.0}]).eval()
    looks.set_cascade([{"budget": 0.5, "resolution": 16}, {"budget": 0.9}])
    assert list(states(looks)) == [DENSE, GATED]
    assert list(states(gated(tiny_vit(), "dynamicvit").eval())) == [DENSE, GATED]  # learned, and a fixed number stay


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the runtime's own modules
def test_what_runs_single_images_nowhere_runs_as_a_batch_of_one(tiny_vit, tmp_path):
    needs("onnx")
    torch.manual_seed(0)
    model, pixel_values = gated(tiny_vit(), [{"gate": "sublayer"}]).eval(), images(4)
    pairs = check_ways([PYTORCH, "ONNX Runtime"], ["float32", "int8"])
    graphs = Graphs({GATED: model}, tmp_path, pairs, True, pixel_values)
    exported = [Way("ONNX Runtime", "float32", GATED), Way("ONNX Runtime", "int8", GATED)]
    assert [sorted(graphs.folders[way]) for way in exported] == [["dynamic", "one"], ["dynamic"]]
    scores = score_ways(graphs, pairs, pixel_values)
    assert [(one.runtime, one.precision) for one in scores] == [(PYTORCH, "float32"), *(way[:2] for way in exported)]
    assert scores[0].same == scores[1].same == 1.0 and scores[1].accuracy is None
    for size, hows in ((1, [[""], [""]]), (4, [["streams", "batch", "batch in parts"], ["batch", "batch in parts"]])):
        with torch.inference_mode():
            runs = dict(runs_of(graphs, pairs[1:], size, 2))
            assert [[run.how for run in runs[way]] for way in exported] == hows
            wanted = model(pixel_values[:size]).logits
            for run in runs[exported[0]]:
                logits, _ = run.call(pixel_values[:size].numpy())
                assert (torch.from_numpy(logits) - wanted).abs().max() < 1e-5


def test_sixteen_bits_in_openvino_and_none_in_onnx_runtime(model, tmp_path):
    needs("openvino")
    place = export(model, tmp_path / "exported", "openvino", "dynamic")
    pixel_values = images(4)
    full = DynViTRuntime.from_pretrained(place, threads=1, images=4)(pixel_values.numpy())
    half = DynViTRuntime.from_pretrained(place, threads=1, bfloat16=True)(pixel_values.numpy())
    with torch.no_grad():
        wanted = model(pixel_values)
    assert abs(full.logits - wanted.logits.numpy()).max() < 1e-5 and abs(full.cost - wanted.cost.numpy()).max() < 1e-6
    assert np.isfinite(half.logits).all() and abs(half.logits - full.logits).max() < 0.1
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"deploy": config["deploy"] | {"format": "onnx"}}))
    with pytest.raises(ValueError, match="only OpenVINO has products in 16 bits"):
        DynViTRuntime.from_pretrained(place, bfloat16=True)


def test_every_exported_way_predicts_what_pytorch_does_and_is_timed_with_its_cost(model, tmp_path):
    needs("onnx")
    pairs, pixel_values = check_ways(["ONNX Runtime"], ["float32", "int8 dynamic"]), images(6)
    graphs = Graphs(states(model), tmp_path, pairs, False, images(4))
    assert len(graphs.folders) == 6 and all(set(made) == {"one"} for made in graphs.folders.values())
    with torch.no_grad():
        out = model(pixel_values)
    scores = {
        one.precision: one for one in score_ways(graphs, pairs, pixel_values, out.logits.argmax(1))
    }  # the last of each: gated
    assert scores["float32"].gates == GATED and scores["float32"].accuracy == 1.0
    assert all(one.same is None and one.images == 6 for one in scores.values())  # PyTorch is not among them
    for size in (1, 3):
        times = time_ways(graphs, pairs, pixel_values, size, 0.05)
        assert len(times) == 6 and all(one.ms > 0 and one.batch_size == size for one in times)
        assert all(one.rounds >= 3 * 6 // size and one.rounds % (6 // size) == 0 for one in times)
        assert {one.how for one in times} == {"" if size == 1 else "streams"}
        costs = {(one.precision, one.gates): one.cost for one in times}
        assert costs["float32", GATED] == pytest.approx(out.cost.mean().item(), abs=1e-6)
        assert 0.5 < costs["float32", DENSE] < 1.0  # the last layer as it is read


def test_ways_of_pytorch_are_the_dense_ones_the_packed_model_and_its_fixed_form(model, tmp_path, monkeypatch):
    without_the_compiler(monkeypatch)
    pairs, pixel_values = check_ways([PYTORCH], ["float32", "bfloat16"]), images(4)
    graphs = Graphs(states(model), tmp_path, pairs, True, pixel_values)
    assert not graphs.folders and not list(tmp_path.iterdir())
    with torch.inference_mode():
        found = dict(runs_of(graphs, pairs, 4, 1))
        assert {way.gates for way in found} == {DENSE, OPEN, GATED, FIXED} and len(found) == 8
        dense = found[Way(PYTORCH, "float32", DENSE)]
        assert {"eager", "sdpa", AHEAD, "ours, no gates"} == {run.how for run in dense}
        (packed,) = found[Way(PYTORCH, "float32", GATED)]
        logits, cost = packed.call(pixel_values)
        wanted = model(pixel_values)
        assert (logits - wanted.logits).abs().max() < 1e-5 and (cost == wanted.cost).all()
        (half,) = found[Way(PYTORCH, "bfloat16", OPEN)]
        assert half.call(pixel_values.bfloat16())[0].dtype == torch.bfloat16
        (fixed,) = found[Way(PYTORCH, "float32", FIXED)]
        assert fixed.how == AHEAD and len(set(fixed.call(pixel_values)[1].tolist())) == 1
    scores = score_ways(graphs, pairs, pixel_values)
    assert [one.same for one in scores if (one.precision, one.gates) == ("float32", GATED)] == [1.0]
    assert all(one.same is not None for one in scores if one.gates == FIXED)
