"""Images resized inside the model: the same weights on fewer patches, at a cost relative to the images as they come."""

import pytest
import torch
from models import gated, images
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification

from hf_dynvit import DynViTConfig, DynViTForImageClassification, calibrate
from hf_dynvit.measure.random_decisions import draw_decisions
from hf_dynvit.model.cost import dense_macs


MERGE = [{"gate": "merge", "distance": 4.0, "layers": [1]}]


@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_the_vit_on_resized_images_with_its_positions_interpolated(tiny_vit, autocast):
    vit = tiny_vit()
    model = DynViTForImageClassification.from_vit(vit, resolution=24)
    x = images(3)
    small = F.interpolate(x, (24, 24), mode="bicubic", antialias=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = vit(small, interpolate_pos_encoding=True).logits
        assert_close(model(x).logits, expected, atol=0.05 if autocast else 1e-5, rtol=1e-5)


def test_the_cost_is_what_runs_relative_to_the_images_as_they_come(tiny_vit, counted_attention):
    model = DynViTForImageClassification.from_vit(tiny_vit(), resolution=24)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cost = model(images(1)).cost.item()
    dense = dense_macs(model.config, model.num_tokens, model.num_labels)
    assert (model.tokens_run, model.num_tokens) == (10, 17)
    assert round(cost * dense) == counter.get_total_flops() / 2 == dense_macs(model.config, 10, model.num_labels)


def test_both_layouts_agree_and_budgets_are_relative_to_the_dense_model(tiny_vit):
    model = gated(tiny_vit(), MERGE, resolution=24)
    x = images(8)
    found = {}
    for model.layout in ("masked", "packed"):
        with torch.no_grad():
            found[model.layout] = model(x)
    assert_close(found["masked"].logits, found["packed"].logits, atol=1e-4, rtol=1e-4)
    assert_close(found["masked"].cost, found["packed"].cost)
    model.layout, everything = (
        None,
        DynViTForImageClassification.from_vit(tiny_vit(), resolution=24)(x[:1]).cost.item(),
    )
    _, cost = calibrate(model, [x], 0.9 * everything)
    assert cost == pytest.approx(0.9 * everything, abs=0.05)


def test_a_saved_model_resizes_without_the_package(tiny_vit, tmp_path):
    model = gated(tiny_vit(), MERGE, resolution=24).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    x = images(2)
    assert_close(loaded(x).logits, model(x).logits)


@pytest.mark.parametrize("resolution", [12, 0, 40, 24.0, [24], [24, 20], "24"])
def test_sizes_that_no_patches_fill_are_refused(resolution):
    with pytest.raises(Exception, match="resolution"):
        DynViTConfig(image_size=32, patch_size=8, resolution=resolution)


def test_patches_are_not_chosen_of_resized_images(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(), resolution=24)
    with pytest.raises(ValueError, match="patches cannot be chosen of images that are resized, resolution 24"):
        model(images(1), patches=torch.tensor([0, 1]))


@pytest.mark.parametrize("fields", [{"image_size": [16, 64]}, {"image_size": [32, 64]}, {"patch_size": [8, 8]}])
def test_positions_that_are_no_square_are_not_interpolated(fields):
    with pytest.raises(Exception, match="needs a square image_size and one number as patch_size"):
        DynViTConfig(**{"image_size": 32, "patch_size": 8, **fields}, resolution=16)


def test_bytes_do_not_wrap_around(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(), resolution=24)
    x = torch.zeros(2, 3, 32, 32)
    x[:, :, 10:20, 10:20] = 255  # which the filter goes beyond
    assert_close(model(x.byte()).logits, model(x).logits)


def test_random_decisions_of_a_cost_are_for_the_tokens_that_run(tiny_vit):
    model = gated(tiny_vit(), [{"gate": "patch"}], resolution=24)
    drawn = draw_decisions(model, 64, 0.4, torch.Generator().manual_seed(0))
    assert model(images(64), decisions=drawn).cost.mean().item() == pytest.approx(0.4, abs=0.01)
