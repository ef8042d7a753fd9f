"""On a GPU, the kernels of packed attention and the packed layout built on them mean what the CPU's loop means."""

import pytest
import torch
from models import EXTREMES, extreme_decisions, gated, images, random_decisions

from hf_dynvit.model.packed_attention import choose_kernel, packed_attention, varlen_attn


DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 2e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
LENGTHS = {"uneven": [5, 1, 130, 64, 197], "equal": [48] * 4, "one image": [77], "single rows": [1, 1, 2]}
HALF = (torch.float16, torch.bfloat16)


def flash_available():
    return varlen_attn is not None and torch.cuda.get_device_capability() >= (8, 0)


def kernels(dtype):
    return ["padded", "varlen"] if dtype in HALF and flash_available() else ["padded"]


def inputs(lengths, dtype, num_heads=3, head_dim=64):
    """q, k, v (T, H, d), strided as the slices of a fused projection are, and the tensor that they are slices of."""
    fused = torch.randn(sum(lengths), 3, num_heads, head_dim, device=DEVICE).to(dtype).requires_grad_()
    return fused, fused.unbind(1)


def some_heads(lengths, num_heads=3):
    heads = torch.rand(len(lengths), num_heads, device=DEVICE) < 0.5
    heads[0] = False  # an image with rows but no head
    heads[-1] = True
    return heads


def forward_and_gradient(fused, lengths, heads, kernel):
    out = packed_attention(*fused.unbind(1), lengths, heads, kernel=kernel)
    towards = torch.sin(torch.arange(out.numel(), device=out.device, dtype=torch.float32)).view_as(out)
    (gradient,) = torch.autograd.grad((out.float() * towards).sum(), fused)
    return out.float(), gradient.float()


@pytest.mark.parametrize("with_heads", [False, True], ids=["all heads", "some heads"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_kernel_gives_the_outputs_and_gradients_of_the_loop_in_float32(dtype, lengths, with_heads):
    fused, _ = inputs(lengths, dtype)
    heads = some_heads(lengths) if with_heads else None
    exact = fused.detach().float().requires_grad_()
    expected, expected_gradient = forward_and_gradient(exact, lengths, heads, "loop")
    for kernel in kernels(dtype):
        out, gradient = forward_and_gradient(fused, lengths, heads, kernel)
        torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        torch.testing.assert_close(gradient, expected_gradient, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_heads_that_are_off_give_zeros_and_get_no_gradient(dtype):
    lengths = LENGTHS["uneven"]
    fused, _ = inputs(lengths, dtype)
    for kernel in kernels(dtype):
        heads = torch.zeros(len(lengths), 3, dtype=torch.bool, device=DEVICE)
        assert not packed_attention(*fused.unbind(1), lengths, heads, kernel=kernel).any()
        heads[:, 1] = True
        out, gradient = forward_and_gradient(fused, lengths, heads, kernel)
        assert not out[:, [0, 2]].any() and not gradient[:, :, [0, 2]].any()
        assert out[:, 1].any() and gradient[:, :, 1].any()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_head_width_that_flash_attention_refuses_still_runs(dtype):
    lengths = LENGTHS["uneven"]
    fused, (query, key, value) = inputs(lengths, dtype, head_dim=20)
    out = packed_attention(query, key, value, lengths)
    expected = packed_attention(*fused.detach().float().unbind(1), lengths, kernel="loop")
    torch.testing.assert_close(out.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_sixteen_bit_attention_is_varlen_where_the_gpu_has_flash_attention():
    wanted = "varlen" if flash_available() else "padded"
    for dtype in HALF:
        assert choose_kernel(torch.empty(4, 3, 64, dtype=dtype, device=DEVICE)) == wanted
    assert choose_kernel(torch.empty(4, 3, 64, device=DEVICE)) == "padded"


@pytest.mark.parametrize("gate_set", [[{"gate": "patch"}, {"gate": "sublayer"}], [{"gate": "head"}]], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["in dtype", "autocast"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_packed_equals_masked_in_sixteen_bit(tiny_vit, dtype, autocast, gate_set):
    model = gated(tiny_vit(initializer_range=0.05), gate_set).to(DEVICE).requires_grad_(True)
    if not autocast:
        model = model.to(dtype)
    x = images(6).to(DEVICE)
    drawn = [random_decisions(6, 2)] + [extreme_decisions(name, 6, 2) for name in EXTREMES]
    for decisions in drawn:
        decisions = [type(layer)(*(keep.to(DEVICE) for keep in layer)) for layer in decisions]
        logits, gradients = {}, {}
        for layout in ("masked", "packed"):
            model.layout = layout
            with torch.autocast("cuda", dtype, enabled=autocast):
                out = model(x, decisions=decisions).logits.float()
            model.zero_grad()
            out.square().sum().backward()
            logits[layout] = out.detach()
            gradients[layout] = model.classifier.weight.grad.float()
        torch.testing.assert_close(logits["packed"], logits["masked"], atol=0.05, rtol=0.05)
        torch.testing.assert_close(gradients["packed"], gradients["masked"], atol=0.2, rtol=0.1)


def test_packed_equals_masked_in_float32(tiny_vit):
    model = gated(tiny_vit(), [{"gate": "patch"}, {"gate": "head"}, {"gate": "sublayer"}]).to(DEVICE)
    x, logits = images(6).to(DEVICE), {}
    with torch.no_grad():
        for layout in ("masked", "packed"):
            model.layout = layout
            logits[layout] = model(x).logits
    torch.testing.assert_close(logits["packed"], logits["masked"], atol=1e-4, rtol=0)
