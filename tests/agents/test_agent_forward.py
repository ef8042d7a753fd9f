"""A forward on some patches is that of the others never there, in both layouts, with its cost and gradients."""

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.cost import dense_macs


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("per_image", [False, True])
def test_a_forward_on_some_patches_is_that_of_the_others_never_there(tiny_vit, layout, per_image):
    vit = tiny_vit(3)
    model, pixel_values = DynViTForImageClassification.from_vit(vit), images(3)
    patches = torch.tensor([1, 4, 5, 15])
    patches = torch.stack([patches, patches - 1, torch.tensor([7, 3, 9, 0])]) if per_image else patches
    out = run(model, layout, pixel_values, patches=patches)
    with torch.no_grad():
        tokens = vit.vit.embeddings(pixel_values)
        for image in range(3):
            kept = patches[image] if per_image else patches
            x = torch.cat((tokens[image, :1], tokens[image, 1:][kept]))[None]  # positions stay those of the patches
            for layer in vit.vit.layers:
                x = layer(x)
            assert_close(out.logits[image], vit.classifier(vit.vit.layernorm(x[:, 0]))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_on_all_patches_the_logits_are_those_of_the_vit(tiny_vit, layout):
    vit, pixel_values = tiny_vit(), images(2)
    model = DynViTForImageClassification.from_vit(vit)
    out = run(model, layout, pixel_values, patches=torch.arange(16))
    assert_close(out.logits, vit(pixel_values).logits, rtol=0, atol=1e-5)
    assert out.cost.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", GATE_SETS)
def test_layouts_agree_on_some_patches_with_every_gate(tiny_vit, name):
    model, pixel_values = gated(tiny_vit(), GATE_SETS[name]), images(4)
    patches = torch.rand(4, 16).argsort(1)[:, :7]
    one, other = (run(model, layout, pixel_values, patches=patches) for layout in ("masked", "packed"))
    assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
    assert_close(one.cost, other.cost)


@pytest.mark.usefixtures("counted_attention")
def test_the_cost_on_some_patches_is_what_runs_over_the_full_dense_model(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(3))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(images(2), patches=torch.arange(5))
    assert counter.get_total_flops() / 2 == round(out.cost.sum().item() * dense_macs(model.config, 17, 5))
    assert 0.2 < out.cost[0] < 0.45


def test_gradients_pass_the_removal_in_both_layouts(tiny_vit):
    model, pixel_values, patches = DynViTForImageClassification.from_vit(tiny_vit()), images(2), torch.arange(6)
    gradients = []
    for model.layout in ("masked", "packed"):
        loss = model(pixel_values, labels=torch.tensor([0, 1]), patches=patches).loss
        gradients.append(torch.autograd.grad(loss, model.vit.embeddings.position_embeddings)[0])
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0][0, 1:7].any(-1).all() and not gradients[0][0, 7:].any()


@pytest.mark.parametrize(
    ("patches", "error"),
    [
        (torch.ones(16, dtype=torch.bool), ValueError),
        (torch.arange(17), ValueError),
        (torch.arange(0), ValueError),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError),
        ([0, 1], ValueError),
        (torch.tensor([16]), IndexError),
        (torch.tensor([-1]), IndexError),
    ],
)
def test_patches_that_make_no_sense_are_refused(tiny_vit, patches, error):
    model = DynViTForImageClassification.from_vit(tiny_vit())
    with pytest.raises(error, match="patches must be"):
        model(images(2), patches=patches)
