"""What cannot be exported says so before any work, and pixels are those of transformers' processor."""

import importlib.util

import numpy as np
import pytest
import torch
from models import GATE_SETS, gated
from PIL import Image
from transformers import ConvNextImageProcessorPil, EfficientNetImageProcessorPil, LevitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil as Processor

from hf_dynvit.data import cropping
from hf_dynvit.deploy import DynViTRuntime, export
from hf_dynvit.deploy.checks import check_export, check_model
from hf_dynvit.deploy.export import check_preprocessing, resized_by
from hf_dynvit.deploy.runtime import eight_bit, pixels
from hf_dynvit.model.resolution import resized


@pytest.mark.parametrize(
    "name, message",
    [
        ("patch on block", "PatchGate of layer 0 .* come back in later layers. Use drop: true"),
        ("patch on mlp", "come back in later layers"),
        (
            "token by values, passing",
            "TokenGate of layer 1 .* come back in later layers. Use rest: drop, merge or fuse",
        ),
        ("token at random", "its scores are drawn anew in every forward. Use another score"),
        ("random head", "RandomGate of layer 0 cannot be exported: there are exported forms of"),
    ],
)
def test_a_gate_without_an_exported_form_is_refused_by_name(tiny_vit, name, message):
    with pytest.raises(ValueError, match=message):
        check_model(gated(tiny_vit(), GATE_SETS[name]))


def test_a_class_of_that_name_from_elsewhere_is_told_what_to_load(tiny_vit):
    model = gated(tiny_vit(), GATE_SETS["merge"])
    model.__class__ = type("DynViTForImageClassification", (torch.nn.Module,), {})
    with pytest.raises(TypeError, match="of the code that came with it: load it with that of hf_dynvit"):
        check_model(model)


def test_a_mean_over_tokens_that_are_gone_is_refused(tiny_vit):
    mean = {"gate": "block", "pool": "mean", "layers": [1]}
    check_model(gated(tiny_vit(), [mean]))
    with pytest.raises(ValueError, match="BlockGate of layer 1 .* Use pool: cls"):
        check_model(gated(tiny_vit(), [mean, {"gate": "merge", "layers": [0]}]))


def test_a_branch_of_a_last_layer_as_it_is_read_is_refused(tiny_vit):
    check_model(gated(tiny_vit(), [{"gate": "block", "layers": [0]}], last_layer="read"))
    with pytest.raises(
        ValueError, match="last_layer 'read' with a gate of sub-layers in the last layer has no exported form"
    ):
        check_model(gated(tiny_vit(), GATE_SETS["block"], last_layer="read"))


def test_int8_of_branches_alone_is_refused(tiny_vit, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    skips = gated(tiny_vit(), GATE_SETS["block"])
    with pytest.raises(
        ValueError, match='leaves what stands in a branch in float32.*batch "dynamic", or for OpenVINO'
    ):
        check_export(skips, "onnx", quantize="int8")
    check_export(skips, "onnx", "dynamic", "int8")
    check_export(skips, "onnx")


def test_words_packages_and_folders_are_checked_before_any_work(tiny_vit, tmp_path, monkeypatch):
    model = gated(tiny_vit(), GATE_SETS["merge"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="format must be one of .*'tensorrt'"):
        export(model, tmp_path / "out", "tensorrt")
    with pytest.raises(ValueError, match="batch must be one of .*'dynamic'.*, got 8"):
        export(model, tmp_path / "out", batch=8)
    with pytest.raises(ValueError, match="quantize must be one of .*'int4'"):
        export(model, tmp_path / "out", quantize="int4")
    with pytest.raises(ValueError, match="needs calibration images, got None"):
        export(model, tmp_path / "out", quantize="int8")
    with pytest.raises(TypeError, match="got Linear"):
        export(torch.nn.Linear(1, 1), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        export(model, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'hf_dynvit\[deploy\]'"):
        export(model, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds no exported model: it has no config.json"):
        DynViTRuntime.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got 2 streams, 1 threads"):
        DynViTRuntime.from_pretrained(tmp_path, threads=1, streams=2)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "steps",
    [
        {"size": {"height": 30, "width": 20}, "resample": 3},
        {"size": {"shortest_edge": 33}, "do_center_crop": True, "crop_size": {"height": 32, "width": 31}},
        {"do_resize": False, "do_normalize": False},
    ],
)
def test_pixels_are_those_of_the_processor(mode, steps):
    channels = len(mode)
    mean = {"image_mean": [0.5, 0.4, 0.3][:channels], "image_std": [0.2, 0.3, 0.4][:channels]}
    processor = Processor(**mean, **steps)
    for shape in ((40, 50), (61, 35)):
        image = np.random.default_rng(0).integers(0, 255, (*shape, channels), dtype=np.uint8)
        image = eight_bit(Image.fromarray(image.squeeze()), mode)
        expected = processor(image, return_tensors="np", input_data_format=None)["pixel_values"][0]
        np.testing.assert_array_equal(pixels(image, check_preprocessing(processor)), expected)


def test_a_smaller_size_keeps_the_part_of_images_that_is_seen():
    vit = Processor(size={"height": 224, "width": 224}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    smooth = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(smooth).resize((640, 480), resample=3)
    for processor in (vit, cropping(vit, 0.875)):
        known = check_preprocessing(processor)
        wanted = resized(torch.from_numpy(pixels(photo, known))[None], 160)[0].numpy()
        found = pixels(photo, resized_by(known, (160, 160)))
        assert found.shape == (3, 160, 160) and np.abs(found - wanted).mean() < 0.03
        whole = pixels(photo, resized_by(check_preprocessing(vit), (160, 160)))
        assert (np.abs(whole - wanted).mean() < 0.03) == (processor is vit)
    for wrong in ({"crop_size": {"height": 224, "width": 200}}, {"size": {"height": 249, "width": 249}}):
        with pytest.raises(ValueError, match="or to a shortest_edge of which it takes the middle, got"):
            resized_by({**known, **wrong}, (160, 160))


def test_a_processor_with_other_steps_is_refused():
    with pytest.raises(ValueError, match="the crop must not be larger than the image"):
        check_preprocessing(
            Processor(size={"shortest_edge": 8}, do_center_crop=True, crop_size={"height": 9, "width": 9})
        )
    with pytest.raises(ValueError, match="resize, crop, rescale and normalize"):
        check_preprocessing(Processor(do_pad=True, pad_size={"height": 9, "width": 9}))
    for other in (LevitImageProcessorPil(), EfficientNetImageProcessorPil(), ConvNextImageProcessorPil()):
        with pytest.raises(ValueError, match="Pil does more than resize, crop, rescale and normalize"):
            check_preprocessing(other)
    assert check_preprocessing(None) == {}


def test_images_without_a_processor_are_refused():
    runtime = DynViTRuntime({"deploy": {"shape": [3, 32, 32]}}, {}, [None])
    with pytest.raises(ValueError, match="was exported without an image processor: give pixel_values"):
        runtime.predict(Image.new("RGB", (32, 32)))
