"""The product that stands for the patch convolution gives the same tokens, and refuses what the host refuses."""

import pytest
import torch

from hf_dynvit.model.host import HOSTS


def embed(vit, pixels, interpolate=False):
    return HOSTS["vit"].embed(vit.vit, pixels, interpolate)[0]


@pytest.mark.parametrize("patch", [8, (8, 16)])
def test_tokens_equal_those_of_the_convolution(tiny_vit, patch):
    vit, pixels = tiny_vit(patch_size=patch).bfloat16(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = vit.vit.embeddings(pixels.bfloat16())
        torch.testing.assert_close(embed(vit, pixels), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("patch", [8, (8, 16)])
def test_training_under_autocast_has_the_gradients_of_the_convolution(tiny_vit, patch):
    vit, pixels = tiny_vit(patch_size=patch), torch.randn(3, 3, 32, 32)
    embeddings, found = vit.vit.embeddings, []
    with torch.autocast("cpu", torch.bfloat16):
        for function in (embed, lambda vit, pixels: embeddings(pixels)):
            tokens = function(vit, pixels)
            found.append([tokens.detach(), *torch.autograd.grad(tokens.square().sum(), embeddings.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=0.02 * theirs.abs().max().item(), rtol=0.02)


@pytest.mark.parametrize("interpolate", [False, True])
def test_what_is_beyond_the_last_whole_patch_is_left_out(tiny_vit, interpolate):
    vit, pixels = tiny_vit(image_size=36).bfloat16(), torch.randn(2, 3, 36, 36)
    with torch.no_grad():
        expected = vit.vit.embeddings(pixels.bfloat16(), interpolate_pos_encoding=interpolate)
        assert torch.equal(embed(vit, pixels, interpolate), expected)


def test_another_image_size_is_refused_unless_positions_are_interpolated(tiny_vit):
    vit = tiny_vit().bfloat16()
    with torch.no_grad():
        with pytest.raises(ValueError, match="48"):
            embed(vit, torch.randn(1, 3, 48, 48))
        assert embed(vit, torch.randn(1, 3, 48, 48), interpolate=True).shape == (1, 37, 32)
