"""Each kernel of packed attention is the softmax attention of one image over its own rows."""

import pytest
import torch
from torch.testing import assert_close

from hf_dynvit.model.packed_attention import packed_attention


def softmax_reference(query, key, value, lengths, heads, bias=None):
    out = torch.zeros_like(query)
    for image, rows in enumerate(torch.arange(sum(lengths)).split(lengths)):
        for head in range(query.shape[1]):
            if heads is None or heads[image, head]:
                q, k, v = (t[rows, head] for t in (query, key, value))
                scores = q @ k.T / q.shape[-1] ** 0.5 + (0 if bias is None else bias[rows])
                out[rows, head] = scores.softmax(-1) @ v
    return out


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [3, 17, 1, 9], [4, 4, 4]])
@pytest.mark.parametrize("heads", ["all", "random", "off", "of one image"])
@pytest.mark.parametrize("kernel", ["loop", "padded"])
def test_kernels_compute_softmax_attention_of_each_image_alone(kernel, heads, lengths):
    query, key, value = torch.randn(3, sum(lengths), 4, 8).unbind(0)
    kept = {
        "all": None,
        "random": torch.rand(len(lengths), 4) < 0.5,
        "off": torch.zeros(len(lengths), 4, dtype=torch.bool),
        "of one image": torch.arange(len(lengths)).eq(0)[:, None].repeat(1, 4),
    }[heads]
    out = packed_attention(query, key, value, lengths, kept, kernel=kernel)
    assert_close(out, softmax_reference(query, key, value, lengths, kept), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[5], [3, 17, 1, 9], [4, 4, 4]])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("kernel", ["loop", "padded"])
@pytest.mark.parametrize("width", [8, 12])
def test_a_bias_is_added_to_the_scores_of_each_key(kernel, heads, lengths, width):
    query, key, value = torch.randn(3, sum(lengths), 4, width).unbind(0)
    bias, kept = torch.rand(sum(lengths)) * 3, torch.rand(len(lengths), 4) < 0.5 if heads else None
    out = packed_attention(query, key, value, lengths, kept, kernel=kernel, bias=bias)
    assert_close(out, softmax_reference(query, key, value, lengths, kept, bias), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["loop", "padded"])
def test_kernels_have_the_gradients_of_softmax_attention(kernel):
    lengths, heads = [3, 7, 1], torch.tensor([[True, False], [True, True], [False, False]])
    inputs = torch.randn(3, sum(lengths), 2, 8, requires_grad=True)
    weights = torch.randn(sum(lengths), 2, 8)
    gradients = [
        torch.autograd.grad((function(*inputs.unbind(0), lengths, heads) * weights).sum(), inputs)[0]
        for function in (softmax_reference, lambda *args: packed_attention(*args, kernel=kernel))
    ]
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)
