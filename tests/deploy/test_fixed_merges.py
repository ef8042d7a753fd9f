"""Merges in a number that is known ahead: the pairs of the least logit, in a graph without changing sizes."""

import numpy as np
import pytest
import torch
from exported_models import needs
from models import gated, images, run

from hf_dynvit import DynViTForImageClassification, calibrate
from hf_dynvit.deploy import DynViTRuntime, export
from hf_dynvit.deploy.export import single_look
from hf_dynvit.deploy.parting import fixed_counts
from hf_dynvit.training.fixed import fix_merges


MERGE = [{"gate": "merge", "distance": 4.0}]
LOOKS = [{"budget": 0.52, "resolution": 24}, {"budget": 0.9}]


@pytest.fixture
def model(tiny_vit):
    torch.manual_seed(0)
    return gated(tiny_vit(3), MERGE).eval()


def cascade(tiny_vit, looks):
    torch.manual_seed(0)
    return gated(tiny_vit(2, num_labels=3), MERGE, cascade=looks).eval()


def test_every_image_merges_what_images_merged_on_average_also_once_loaded_again(model, tmp_path):
    pixels = images(7)
    own = run(model, "packed", pixels)
    means = [keep.attention_tokens.sum(1).float().mean().round().int().item() for keep in own.decisions]
    assert any(len(set(keep.attention_tokens.sum(1).tolist())) > 1 for keep in own.decisions)
    merged = fix_merges(model, pixels)
    assert sum(merged) == 17 - means[-1] and fixed_counts(model) == means
    fixed = run(model, "packed", pixels)
    for keep, mean in zip(fixed.decisions, means, strict=True):
        assert keep.attention_tokens.sum(1).tolist() == [mean] * 7
    masked = run(model, "masked", pixels)
    assert model.config.gates == [{**MERGE[0], "merged": count, "layers": [at]} for at, count in enumerate(merged)]
    model.save_pretrained(tmp_path)
    again = run(DynViTForImageClassification.from_pretrained(tmp_path), "packed", pixels)
    assert torch.equal(again.logits, fixed.logits) and torch.equal(again.cost, fixed.cost)
    assert fix_merges(model, pixels[:2]) == merged
    torch.testing.assert_close(fixed.logits, masked.logits, atol=1e-5, rtol=0)


def test_each_look_of_a_cascade_merges_a_number_of_its_own(tiny_vit, tmp_path):
    model, pixels = cascade(tiny_vit, [LOOKS[0] | {"shift": -1.0}, LOOKS[1]]), images(7)
    alone = [single_look(model, look) for look in (0, 1)]
    counts = [fix_merges(one, pixels) for one in alone]
    assert counts[0] != counts[1] and fix_merges(model, pixels) == [list(pair) for pair in zip(*counts, strict=True)]
    model.save_pretrained(tmp_path)
    again = DynViTForImageClassification.from_pretrained(tmp_path)
    for look, one in enumerate(alone):
        wanted = run(one, "packed", pixels)
        for layout in ("packed", "masked"):
            again.layout = layout
            found = again(pixels, look=look)
            torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.cost, wanted.cost, atol=1e-6, rtol=0)
        cost = wanted.cost.mean().item()
        assert again.config.cascade[look]["budget"] == pytest.approx(min(1.0, cost), abs=1e-4)
    assert again(pixels).looks.tolist() == [2] * 7  # until it is calibrated
    assert again.config.cascade[0]["shift"] == -1.0  # for gates of other kinds
    calibrate(again, [pixels], 0.9)
    assert again.config.gates == model.config.gates and set(again(pixels).looks.tolist()) <= {1, 2}
    assert single_look(again, 1).config.gates == alone[1].config.gates


def test_looks_that_do_not_begin_with_the_cheapest_are_refused_and_nothing_has_changed(tiny_vit):
    looks = [{"budget": 0.5}, {"budget": 0.6, "resolution": 24}]
    model = gated(tiny_vit(2, num_labels=3), MERGE, cascade=looks).eval()
    with pytest.raises(ValueError, match="the looks of a cascade must begin with the cheapest"):
        fix_merges(model, images(3))
    assert all(gate.merged is None for gate in model.learned_gates())
    assert model.config.gates == MERGE and model.config.cascade == looks


def test_a_number_for_each_look_needs_as_many_looks(tiny_vit):
    several = [{**MERGE[0], "merged": [3, 1]}]
    for looks in (None, [{"budget": share} for share in (0.3, 0.4, 0.9)]):
        with pytest.raises(
            ValueError, match=r"merged \[3, 1\] of a gate has a number for each look of a cascade: it has"
        ):
            gated(tiny_vit(2, num_labels=3), several, cascade=looks)
    model = gated(tiny_vit(2, num_labels=3), several, cascade=[{"budget": 0.3}, {"budget": 0.9}])
    for looks in (None, [{"budget": 0.3, "resolution": 16}, {"budget": 0.9}]):
        with pytest.raises(
            ValueError, match=r"fixed for other looks, each as .*: \[\[None, 0.3\], \[None, 0.9\]\], not"
        ):
            model.set_cascade(looks)
    with pytest.raises(ValueError, match=r": one, not \[\[None, 0.3\], \[None, 0.9\]\]"):
        gated(tiny_vit(2, num_labels=3), [{**MERGE[0], "merged": 3}]).set_cascade([{"budget": 0.3}, {"budget": 0.9}])
    with pytest.raises(ValueError, match=r"merged \[\] of a gate has a number for each look of a cascade: it has 0"):
        gated(tiny_vit(), [{**MERGE[0], "merged": []}])
    with pytest.raises(ValueError, match="merged of a merge gate must be an integer in 0..1048576, got -1"):
        gated(tiny_vit(2, num_labels=3), [{**MERGE[0], "merged": [3, -1]}], cascade=[{"budget": 0.3}, {"budget": 0.9}])
    with pytest.raises(ValueError, match=r"merged of a tome gate must be an integer in 0..1048576, got \[3, 1\]"):
        gated(
            tiny_vit(2, num_labels=3), [{"gate": "tome", "merged": [3, 1]}], cascade=[{"budget": 0.3}, {"budget": 0.9}]
        )


def test_those_merge_that_the_thresholds_would_merge_first(model):
    gate, tokens = model.gates[0]["attention_tokens"], torch.randn(2, 17, 32)
    with torch.no_grad():
        logits = gate.logits(tokens)
        gate.merged = 3
        keep = gate(tokens, "threshold").keep
    for row, kept in zip(logits, keep, strict=True):
        assert sorted(row.argsort()[:3].tolist()) == (~kept).nonzero().squeeze(1).tolist()
    gate.merged = 100
    with torch.no_grad():
        assert gate(tokens, "threshold").keep.sum(1).tolist() == [9, 9]  # [CLS] and the partners


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the runtimes' own modules
def test_a_graph_of_fixed_sizes_gives_what_such_a_model_gives(tiny_vit, tmp_path, format):
    needs(format)
    model, pixels = cascade(tiny_vit, LOOKS), images(6)
    folder = export(model, tmp_path / "out", format, calibration=pixels.numpy(), merges="fixed")
    found = DynViTRuntime.from_pretrained(folder, threads=1)(pixels.numpy())
    expected = []
    for look in (0, 1):
        one = single_look(model, look)
        fix_merges(one, pixels)
        expected.append(run(one, "packed", pixels))
    assert (found.looks == 2).all()  # without a table
    mean = torch.stack([out.logits.softmax(-1) for out in expected]).mean(0).log()
    torch.testing.assert_close(torch.from_numpy(found.logits), mean, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.cost, sum(out.cost for out in expected).numpy(), atol=1e-6)
    assert all(gate.merged is None for gate in model.learned_gates()) and model.config.gates == MERGE


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the runtimes' own modules
def test_a_cascade_whose_merges_are_fixed_is_exported_as_it_is(tiny_vit, tmp_path, format):
    needs(format)
    model, pixels = cascade(tiny_vit, LOOKS), images(8)
    fix_merges(model, pixels)
    calibrate(model, [pixels], 0.8)
    wanted = run(model, "packed", pixels)
    found = DynViTRuntime.from_pretrained(export(model, tmp_path / "out", format), threads=1)(pixels.numpy())
    assert found.looks.tolist() == wanted.looks.tolist() and set(found.looks.tolist()) == {1, 2}
    torch.testing.assert_close(torch.from_numpy(found.logits), wanted.logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.cost, wanted.cost.numpy(), atol=1e-6)


def test_what_cannot_be_fixed_is_refused(tiny_vit, tmp_path):
    needs("onnx")
    with pytest.raises(ValueError, match="where merge gates alone drop tokens, here it is nothing"):
        export(gated(tiny_vit(), None), tmp_path / "a", "onnx", calibration=images(2).numpy(), merges="fixed")
    patch = [*MERGE[:1], {"gate": "patch", "drop": True, "layers": [1]}]
    patch[0] = {**MERGE[0], "layers": [0]}
    with pytest.raises(ValueError, match=r"here it is \['MergeGate', 'PatchGate'\]"):
        export(gated(tiny_vit(), patch), tmp_path / "b", "onnx", calibration=images(2).numpy(), merges="fixed")
    with pytest.raises(ValueError, match="need calibration images"):
        export(gated(tiny_vit(), MERGE), tmp_path / "c", "onnx", merges="fixed")
    with pytest.raises(ValueError, match=r"merges must be one of \['own', 'fixed'\], got 'few'"):
        export(gated(tiny_vit(), MERGE), tmp_path / "d", "onnx", merges="few")
