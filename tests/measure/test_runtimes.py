"""The dense model in other runtimes: its own logits, int8 by its accuracy, a clear word where they are not installed."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from made_results import dense_ms, evaluation, random_speed, speed
from models import images

from hf_dynvit.benchmark import BenchmarkArguments
from hf_dynvit.measure.runtimes import Exported, check_runtimes
from hf_dynvit.report.markdown import rows, table
from hf_dynvit.report.tables import RUNTIMES, beyond_promise, runtime_items


def missing(names):
    return [name for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(missing(["onnx", "onnxscript", "onnxruntime"])), reason="needs hf_dynvit[deploy]")
@pytest.mark.filterwarnings("ignore")  # of the exporter and the quantiser
def test_onnx_runtime_computes_the_dense_model_for_any_batch(tiny_vit):
    vit = tiny_vit(1, num_labels=3)
    with torch.inference_mode():
        exported = Exported(vit, ["onnxruntime"], images(2))
        for batch in (1, 3):
            batches = [images(batch), images(batch)]
            calls = exported.calls(batches)
            assert set(calls) == {"ONNX Runtime fp32", "ONNX Runtime int8"}
            for turn in (0, 1):
                expected = vit(batches[turn]).logits
                torch.testing.assert_close(calls["ONNX Runtime fp32"](turn), expected, atol=1e-4, rtol=0)
                torch.testing.assert_close(calls["ONNX Runtime int8"](turn), expected, atol=0.1, rtol=0)
                assert not torch.equal(calls["ONNX Runtime int8"](turn), calls["ONNX Runtime fp32"](turn))
        labelled = [{"pixel_values": image, "labels": int(vit(image[None]).logits.argmax())} for image in images(9)]
    measured = exported.accuracy(labelled, most=20)
    assert measured["ONNX Runtime fp32"] == {"accuracy": 1.0, "images": 8, "agrees": 1.0}  # whole batches
    with torch.no_grad():
        exported.vit.classifier.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="ONNX Runtime fp32 computes other logits than PyTorch: off by 1"):
        exported.calls([images(1)])


def test_a_runtime_that_is_unknown_or_not_installed_is_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="runtimes must be of .*'tensorrt'"):
        BenchmarkArguments(runtimes=["tensorrt"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnxruntime, .*must be installed: pip install 'hf_dynvit\[deploy\]'"):
        check_runtimes(["onnxruntime"])


def at(batch, realised, dense=10.0, **facts):
    """A row of the benchmark; `dense`: milliseconds of our model without gates."""
    made = random_speed(batch, 1.0, realised, **facts)
    ms = made.dense_ms | {"ours, no gates": dense}
    return replace(made, dense_ms=ms, packed_ms=min(ms.values()))


def test_more_than_the_macs_promise_is_explained_and_less_is_not():
    assert beyond_promise([at(1, 0.8), at(8, 1.0)], []) == []
    (text,) = beyond_promise([at(1, 0.8, 10.0), at(8, 1.25, 100.0)])
    assert text.startswith("1 of 2 rows gain more than the MACs promise, 1.25 of it at most.")
    assert "up to 1.25 times as long for each image in a larger batch" in text and "skip nothing" not in text
    (text,) = beyond_promise([at(1, 1.2, 10.0)], [at(8, 1.1, 160.0, gates="all open (patch)")])
    assert "1 of them skip nothing" in text and "as long for each image" not in text  # not of one model
    (text,) = beyond_promise([at(1, 1.2, 10.0), at(8, 1.1, 160.0, size="small")])
    assert "as long for each image" not in text


def test_runtimes_have_rows_with_what_they_cost_against_packed():
    timed = speed(8, dense_ms=dense_ms(40.0), packed_ms=20.0, other_ms={"OpenVINO fp32": 32.0})
    made = evaluation(instructions="AVX2", throughput=[timed])
    assert runtime_items(made) == []
    found = {"accuracy": 0.5, "images": 16, "agrees": 1.0}
    known = {"OpenVINO fp32": found, "OpenVINO int8": {"skipped": "no nncf"}}
    made = rows(RUNTIMES, runtime_items(evaluation(instructions="AVX2", throughput=[timed], runtimes=known)))
    assert [list(one.values())[1:6] for one in made] == [
        ["OpenVINO fp32", "50.00", 16, "100.0%", "250.0 (8; packed is 1.60×, dense 0.80×)"],
        ["OpenVINO int8", "skipped: no nncf", None, None, "–"],
    ]
    assert made[0]["device"] == "A CPU (AVX2)" and "| skipped: no nncf | – | – | – |" in table(made)
