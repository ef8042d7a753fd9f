"""The product that stands for the patch convolution gives the same tokens, and refuses what the host refuses."""

import pytest
import torch

from hf_dynvit.model.host_vit import embed


@pytest.mark.parametrize("patch", [8, (8, 16)])
def test_tokens_equal_those_of_the_convolution(tiny_vit, patch):
    embeddings = tiny_vit(patch_size=patch).vit.embeddings.bfloat16()
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = embeddings(pixels.bfloat16())
        torch.testing.assert_close(embed(embeddings, pixels, False), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("patch", [8, (8, 16)])
def test_training_under_autocast_has_the_gradients_of_the_convolution(tiny_vit, patch):
    embeddings, pixels = tiny_vit(patch_size=patch).vit.embeddings, torch.randn(3, 3, 32, 32)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for function in (embed, lambda embeddings, pixels, _: embeddings(pixels)):
            tokens = function(embeddings, pixels, False)
            found.append([tokens.detach(), *torch.autograd.grad(tokens.square().sum(), embeddings.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=0.02 * theirs.abs().max().item(), rtol=0.02)


def test_another_image_size_is_refused_unless_positions_are_interpolated(tiny_vit):
    embeddings = tiny_vit().vit.embeddings.bfloat16()
    with torch.no_grad():
        with pytest.raises(ValueError, match="48"):
            embed(embeddings, torch.randn(1, 3, 48, 48), False)
        assert embed(embeddings, torch.randn(1, 3, 48, 48), True).shape == (1, 37, 32)
