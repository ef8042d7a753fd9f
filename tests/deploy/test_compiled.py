"""Fixed merges compiled as a whole: what such a model gives, as it is called, and what is refused."""

import pytest
import torch
from exported_models import without_the_compiler
from models import gated, images, run
from torch.testing import assert_close

from hf_dynvit import calibrate
from hf_dynvit.deploy.compiled import CompiledDynViT
from hf_dynvit.deploy.export import single_look
from hf_dynvit.training.fixed import fix_merges


MERGE = [{"gate": "merge", "distance": 4.0}]
LOOKS = [{"budget": 0.52, "resolution": 24}, {"budget": 0.9}]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # where torch compiles


@pytest.fixture
def uncompiled(monkeypatch):
    without_the_compiler(monkeypatch)


def test_a_compiled_look_gives_what_it_gives_when_merges_are_fixed(tiny_vit):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(1, num_labels=3), MERGE, cascade=LOOKS).eval(), images(3)
    fast = CompiledDynViT(model, pixels)
    strided = pixels.to(memory_format=torch.channels_last)  # a program takes memory as it was made for
    fixed = single_look(model, 0)
    fix_merges(fixed, pixels)
    wanted = run(fixed, "packed", pixels)
    with torch.inference_mode():
        found = fast(strided, look=0)
    assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert_close(found.cost, wanted.cost, atol=1e-6, rtol=0)
    assert model.gates[0]["attention_tokens"].merged is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_all_sizes_give_what_single_images_give(tiny_vit, uncompiled, dtype):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(3), MERGE, resolution=24).eval(), images(4)
    fast = CompiledDynViT(model, pixels, dtype)
    together = fast(pixels)
    alone = [fast(image) for image in pixels.split(1)]
    assert together.logits.dtype == dtype and together.cost.dtype == torch.float32
    bound = 1e-5 if dtype == torch.float32 else 0.05
    assert_close(together.logits, torch.cat([out.logits for out in alone]), atol=bound, rtol=0)
    assert (together.cost == torch.cat([out.cost for out in alone])).all() and len(set(together.cost.tolist())) == 1
    fixed = single_look(model, 0)
    fix_merges(fixed, pixels)
    wanted = run(fixed, "packed", pixels)
    assert_close(together.logits.float(), wanted.logits, atol=bound, rtol=0)
    assert_close(together.cost, wanted.cost, atol=1e-6, rtol=0)


def test_a_cascade_looks_again_where_it_is_unsure(tiny_vit, uncompiled):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(2, num_labels=3), MERGE, cascade=LOOKS).eval(), images(16)
    calibrate(model, [pixels], 0.8)
    fast = CompiledDynViT(model, pixels)
    found, each = fast(pixels), [fast(pixels, look=look) for look in (0, 1)]
    assert set(found.looks.tolist()) == {1, 2}
    again = found.looks == 2
    mean = (each[0].logits.softmax(-1) + each[1].logits.softmax(-1))[again] / 2
    assert_close(found.logits[again].softmax(-1), mean, atol=1e-5, rtol=0)
    assert_close(found.logits[~again].softmax(-1), each[0].logits[~again].softmax(-1), atol=1e-5, rtol=0)
    assert_close(found.cost, each[0].cost + again * each[1].cost, atol=1e-6, rtol=0)
    assert fast(pixels, budget=0.6).looks.sum() < found.looks.sum()
    model.set_cascade(None)
    assert fast(pixels).looks.tolist() == found.looks.tolist()  # what becomes of the model is nothing to it


def test_later_looks_run_in_parts_of_few_sizes(tiny_vit, uncompiled):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(2, num_labels=3), MERGE, cascade=LOOKS).eval(), images(11)
    fast, seen = CompiledDynViT(model, pixels), []
    call = fast._calls[1]
    fast._calls[1] = lambda part: seen.append(len(part)) or call(part)
    together, alone = fast(pixels, look=1), [fast(image, look=1) for image in pixels.split(1)]
    assert seen == [4, 4, 1, 1, 1, *[1] * 11]
    assert_close(together.logits, torch.cat([out.logits for out in alone]), atol=1e-5, rtol=0)


def test_a_cascade_of_fixed_merges_gives_compiled_what_it_gives(tiny_vit, uncompiled):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(2, num_labels=3), MERGE, cascade=LOOKS).eval(), images(16)
    fix_merges(model, pixels)
    calibrate(model, [pixels], 0.8)
    found, wanted = CompiledDynViT(model)(pixels), run(model, "packed", pixels)
    assert set(found.looks.tolist()) == {1, 2} and found.looks.tolist() == wanted.looks.tolist()
    assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert_close(found.cost, wanted.cost, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gates", [None, "tome", "evit"])
def test_what_keeps_as_many_of_every_image_needs_no_images(tiny_vit, uncompiled, gates):
    torch.manual_seed(0)
    model, pixels = gated(tiny_vit(3), gates).eval(), images(4)
    found, wanted = CompiledDynViT(model)(pixels), run(model, "packed", pixels)
    assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert_close(found.cost, wanted.cost, atol=1e-6, rtol=0)


def test_what_has_no_sizes_known_ahead_is_refused(tiny_vit, uncompiled):
    pixels = images(2)
    with pytest.raises(
        ValueError,
        match=r"its own number of tokens, heads or sub-layers cannot be compiled, got \['HeadGate', 'SublayerGate'\]",
    ):
        CompiledDynViT(gated(tiny_vit(), [{"gate": "sublayer"}, {"gate": "head"}, *MERGE]), pixels)
    for none in (pixels[:0], None):
        with pytest.raises(ValueError, match="fixed merges need calibration images, whose mean they are, got none"):
            CompiledDynViT(gated(tiny_vit(), MERGE), none)
    with pytest.raises(ValueError, match="models are compiled on CPU, this one is on meta"):
        CompiledDynViT(gated(tiny_vit(), MERGE).to("meta"), pixels)
    fast = CompiledDynViT(gated(tiny_vit(), MERGE).eval(), pixels)
    with pytest.raises(ValueError, match="compiled for one budget, 1.0: leave out budget=0.5"):
        fast(pixels, budget=0.5)
    with pytest.raises(ValueError, match="look=1 needs a model with a cascade"):
        fast(pixels, look=1)
    for wrong in (torch.zeros(1, 3, 64, 64), pixels[:0]):
        with pytest.raises(ValueError, match=r"pixel_values must be \(images, 3, 32, 32\), and return_dict True, got"):
            fast(wrong)
    with pytest.raises(ValueError, match="cannot be compiled, got \\['LearnedTokenGate'\\]"):
        CompiledDynViT(gated(tiny_vit(), "diffrate"), pixels)  # in 16 bits its ranks may be others
