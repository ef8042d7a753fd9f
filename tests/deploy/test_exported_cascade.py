"""A cascade in a runtime: a graph for each look, which resizes images itself, and as many of them as an image needs."""

import json

import numpy as np
import pytest
import torch
from exported_models import check_agreement, needs
from models import gated, images
from torch.testing import assert_close

from hf_dynvit import calibrate
from hf_dynvit.deploy import DynViTRuntime, export
from hf_dynvit.deploy.stream import resizing
from hf_dynvit.model.resolution import resized


LOOKS = [{"budget": 0.52, "resolution": 24, "weight": 0.5}, {"budget": 0.9, "weight": 3.0}]
MERGE = [{"gate": "merge", "distance": 4.0, "layers": [1]}]


@pytest.fixture
def cascade(tiny_vit):
    torch.manual_seed(0)
    model, x = gated(tiny_vit(), MERGE, cascade=LOOKS).eval(), images(16)
    calibrate(model, [x], 0.8)
    return model, x


@pytest.mark.parametrize("format, batch", [("onnx", "one"), ("onnx", "dynamic"), ("openvino", "one")])
def test_it_takes_the_looks_that_the_model_takes(cascade, tmp_path, format, batch):
    needs(format)
    model, x = cascade
    folder = export(model, tmp_path / "out", format, batch)
    check_agreement(model, folder, x[:6].numpy())
    runtime = DynViTRuntime.from_pretrained(folder, threads=1)
    with torch.no_grad():
        wanted = model(x)
    found = runtime(x.numpy())
    assert found.looks.tolist() == wanted.looks.tolist() and set(found.looks) == {1, 2}
    assert_close(torch.from_numpy(found.logits), wanted.logits, atol=1e-5, rtol=1e-5)
    cheaper = runtime(x.numpy(), budget=0.6)
    with torch.no_grad():
        assert cheaper.looks.tolist() == model(x, budget=0.6).looks.tolist()
    assert cheaper.cost.mean() < found.cost.mean()
    with pytest.raises(ValueError, match="a budget of 0.1 is out of reach"):
        runtime(x.numpy(), budget=0.1)


def test_a_model_of_one_look_takes_one(tiny_vit, tmp_path):
    needs("onnx")
    model = gated(tiny_vit(), MERGE).eval()
    model.config.budget_shifts, model.config.budget = [[0.3, -2.0], [0.7, 2.0]], 0.6
    folder = export(model, tmp_path / "out", "onnx")
    assert "budget_shifts" not in json.loads((folder / "config.json").read_text())  # the graph decides at one of them
    assert model.config.budget_shifts is not None
    runtime, x = DynViTRuntime.from_pretrained(folder, threads=1), images(2).numpy()
    assert runtime(x).looks.tolist() == [1, 1]
    with pytest.raises(ValueError, match="thresholds for one alone"):
        runtime(x, budget=0.5)


@pytest.mark.parametrize("size", [(24, 24), (16, 24)])
def test_resizing_is_two_products(size):
    x = images(2)
    rows, columns = resizing((32, 32), size)
    assert_close(rows @ x @ columns, resized(x, size), atol=1e-5, rtol=1e-5)
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
