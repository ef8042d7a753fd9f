"""An exported model computes what the packed one does, image by image, in each runtime."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import build_tiny_vit
from exported_models import check_agreement, needs, varied
from image_files import processor as processor_of
from image_files import save_checkpoint
from models import gated, images
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from hf_dynvit.deploy import DynViTRuntime, export
from hf_dynvit.deploy.agreement import agreement
from hf_dynvit.deploy.checks import FORMATS
from hf_dynvit.model.resolution import resized


SETS = {
    "merge, then skip": [
        {"gate": "merge", "distance": 4.0},
        {"gate": "sublayer", "bypass": "low_rank", "rank": 4, "layers": [1]},
        {"gate": "head", "deactivation": "official", "layers": [1]},
    ],
    "tome, then block, then patch by novelty": [
        {"gate": "tome", "merged": 3, "layers": [0]},
        {"gate": "block", "upfront": True, "bypass": "mean", "layers": [1]},
        {"gate": "patch", "drop": True, "merge": True, "novelty": 8.0, "layers": [2]},
    ],
    "fuse by the attention of a layer that some skip, then pitome": [
        {"gate": "sublayer", "layers": [1]},  # in the first one [CLS] is that of all images
        {"gate": "token", "keep": 0.7, "rest": "fuse", "layers": [2]},
        {"gate": "pitome", "merged": 3, "layers": [3]},
    ],
    "samples of values, then by threshold": [
        {"gate": "token", "score": "cls_attention_value", "samples": 16, "layers": [1]},
        {"gate": "token", "score": "contrast", "threshold": 0.5, "rest": "merge", "layers": [2]},
    ],
}


def small(vit, gates):
    """A model that resizes, with a table of budgets between two of which it decides."""
    model = gated(vit, gates, resolution=24).eval()
    model.config.budget_shifts, model.config.budget = [[0.3, -2.0], [0.7, 2.0]], 0.6
    return model


@pytest.fixture(params=list(FORMATS), scope="module")
def runtime(request):
    needs(request.param)
    return request.param


@pytest.fixture(scope="module")
def merging(runtime, tmp_path_factory):
    """A model that merges and skips, images, its processor, and the folder that it was exported to."""
    place = tmp_path_factory.mktemp(runtime)
    model, pixel_values = varied(build_tiny_vit(2, num_labels=3), SETS["merge, then skip"])
    processor = AutoImageProcessor.from_pretrained(save_checkpoint(place / "model", model))
    return model, pixel_values, processor, export(model, place / "out", runtime, processor=processor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the runtimes' own modules
def test_an_exported_model_that_merges_gives_the_logits_and_the_cost_of_the_packed_one(merging):
    model, pixel_values, _, folder = merging
    check_agreement(model, folder, pixel_values)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="logits are off by"):
        agreement(other, DynViTRuntime.from_pretrained(folder, threads=1), pixel_values)._replace(same=1.0).check()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(SETS)[1:])
def test_an_exported_model_with_other_gates_does_so_too(tmp_path, runtime, name):
    model, pixel_values = varied(build_tiny_vit(4), SETS[name])
    check_agreement(model, export(model, tmp_path / "out", runtime), pixel_values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", ["one", "dynamic"])
def test_an_exported_model_whose_last_layer_is_as_it_is_read_does_so_too(tiny_vit, tmp_path, runtime, batch):
    model = gated(tiny_vit(3), [{"gate": "tome", "merged": 3}], last_layer="read").eval()
    check_agreement(model, export(model, tmp_path / "out", runtime, batch=batch), images(4).numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_predicts_like_a_pipeline_and_without_torch(merging, tmp_path):
    model, _, processor, folder = merging
    photos = [
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (40, 50, 3), dtype=np.uint8)) for n in range(3)
    ]
    expected = pipeline("image-classification", model=model, image_processor=processor)(photos, top_k=2)
    for streams in (1, 2):
        predicted = DynViTRuntime.from_pretrained(folder, threads=2, streams=streams).predict(photos, top_k=2)
        for one, other in zip(predicted, expected, strict=True):
            assert [item["label"] for item in one] == [item["label"] for item in other]
            np.testing.assert_allclose([i["score"] for i in one], [i["score"] for i in other], atol=1e-5)
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: the camera was held upright
    photos[1].rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    (upright,) = DynViTRuntime.from_pretrained(folder).predict([Image.open(tmp_path / "turned.png")], top_k=2)
    np.testing.assert_allclose([i["score"] for i in upright], [i["score"] for i in expected[1]], atol=1e-5)
    photos[0].save(tmp_path / "photo.png")
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, hf_dynvit=None); from PIL import Image\n"
        "from runtime import DynViTRuntime\n"
        f"print(DynViTRuntime.from_pretrained({str(folder)!r}).predict(Image.open({str(tmp_path / 'photo.png')!r}))[0]['label'])"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected[0][0]["label"]
    with pytest.raises(ValueError, match=r"pixel_values must be \(images, 3, 32, 32\), got \(1, 3, 48, 48\)"):
        DynViTRuntime.from_pretrained(folder)(np.zeros((1, 3, 48, 48)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("calibrated", [True, False])
def test_eight_bits_hold_the_blocks_and_leave_the_gates(tiny_vit, tmp_path, runtime, calibrated):
    if runtime == "openvino":
        pytest.importorskip("nncf")
        if not calibrated:
            pytest.skip("OpenVINO's is always calibrated")
    model, pixel_values = varied(tiny_vit(1), [{"gate": "patch", "drop": True, "merge": True, "novelty": 8.0}])
    calibration = images(16).numpy() if calibrated else None
    folder = export(model, tmp_path / "out", runtime, quantize="int8", calibration=calibration)
    with torch.no_grad():
        labels = model(torch.from_numpy(pixel_values)).logits.argmax(1)  # PyTorch is right about all of them
    found = agreement(model, DynViTRuntime.from_pretrained(folder, threads=1), pixel_values, labels)
    assert found.accuracy_packed == 1.0 and found.accuracy == found.top1
    assert found.top1 >= 0.5 and not found.largest < 1e-5 and "decisions" not in found.text("a", runtime, "int8")
    if runtime == "onnx":
        import onnx

        graph = onnx.load(folder / "model.onnx").graph
        if calibrated:
            wide = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
            products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
            small = [node for node in products if set(node.input[:2]) <= wide]
            assert len(small) == 6 < len(products)
        else:
            small = [node for node in graph.node if node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul")]
            assert len(small) == 6 and not [node for node in graph.node if node.op_type == "QLinearMatMul"]
    else:
        import openvino

        nodes = openvino.Core().read_model(folder / "model.xml").get_ops()
        products = [node for node in nodes if node.get_type_name() == "MatMul"]
        small = [one for one in products if one.input_value(0).get_node().get_type_name() == "FakeQuantize"]
        assert len(small) == 6 < len(products)


def test_a_model_that_resizes_is_exported_for_the_smaller_size_at_its_budget(tiny_vit, tmp_path):
    needs("onnx")
    model = small(tiny_vit(), [{"gate": "merge", "distance": 4.0, "layers": [1]}])
    processor = AutoImageProcessor.from_pretrained(save_checkpoint(tmp_path / "vit", tiny_vit()))
    loaded = DynViTRuntime.from_pretrained(export(model, tmp_path / "out", "onnx", processor=processor))
    agreement(model, loaded, resized(images(4), 24).numpy()).check()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    assert loaded.preprocess([photo]).shape == (1, 3, 24, 24)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_of_any_size_run_together(tmp_path, runtime):
    gates = [
        {"gate": "merge", "distance": 4.0, "layers": [0]},
        {"gate": "sublayer", "bypass": "mean", "layers": [1]},
        {"gate": "head", "deactivation": "official", "layers": [1]},
        {"gate": "token", "score": "cls_attention", "threshold": 0.5, "layers": [2]},
    ]
    model, pixel_values = varied(build_tiny_vit(3), gates)
    folder = export(model, tmp_path / "out", runtime, "dynamic")
    check_agreement(model, folder, pixel_values)
    check_agreement(model, folder, pixel_values[:1])
    wanted = DynViTRuntime.from_pretrained(folder, threads=2)(pixel_values)
    found = DynViTRuntime.from_pretrained(folder, threads=2, streams=2)(pixel_values)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)
    np.testing.assert_allclose(found.cost, wanted.cost, atol=1e-6)


@pytest.mark.parametrize(
    "problem_type, classes", [(None, 1), ("regression", 1), (None, 2), ("multi_label_classification", 2)]
)
def test_scores_are_those_of_a_pipeline_whatever_the_labels_mean(problem_type, classes):
    model = build_tiny_vit(num_labels=classes, problem_type=problem_type).eval()
    processor, photo = processor_of(size={"height": 32, "width": 32}), Image.new("RGB", (32, 32), (200, 10, 90))
    expected = pipeline("image-classification", model=model, image_processor=processor)(photo)
    runtime = object.__new__(DynViTRuntime)
    runtime.config = {
        "problem_type": problem_type,
        "id2label": {str(k): name for k, name in model.config.id2label.items()},
    }
    with torch.no_grad():
        logits = model(processor(photo, return_tensors="pt").pixel_values).logits[0].numpy()
    found = runtime._labels(logits, 5)
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-5)
