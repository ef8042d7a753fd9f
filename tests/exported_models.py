"""Tiny models for the tests of export: whose decisions differ, and whether their exported forms agree with them."""

import importlib.util

import pytest
import torch
from models import gated, images
from transformers.modeling_outputs import ImageClassifierOutput

from hf_dynvit.deploy import DynViTRuntime
from hf_dynvit.deploy.agreement import agreement
from hf_dynvit.deploy.checks import FORMATS


def needs(format):
    for package in FORMATS[format]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def varied(vit, gates):
    """A model and images whose decisions differ."""
    for seed in range(50):
        torch.manual_seed(seed)
        model, pixel_values = gated(vit, gates).eval(), images(6)
        with torch.no_grad():
            if len(model(pixel_values).cost.unique()) > 2:
                return model, pixel_values.numpy()
    raise AssertionError("all images cost the same")


def check_agreement(model, folder, pixel_values):
    found = agreement(model, DynViTRuntime.from_pretrained(folder, threads=1), pixel_values)
    found.check()
    assert found.same == 1.0 and found.top1 == 1.0 and found.largest < 1e-5


def without_the_compiler(monkeypatch):
    """What the programs compute that PyTorch would compile, a minute each."""

    def compiled(module):
        return lambda pixel_values: ImageClassifierOutput(logits=module(pixel_values)[0])

    for place in ("compiled", "ways"):
        monkeypatch.setattr(f"hf_dynvit.deploy.{place}.compiled", compiled)
