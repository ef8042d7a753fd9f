"""What gates read of the attention of [CLS] is that of the layer before, alike in both layouts, and noted for them alone."""

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification


def seen_by_gates(model, layout, pixel_values, **options):
    """Layer -> `TokenState` that its gate of tokens is given."""
    found, hooks = {}, []
    for layer, gates in enumerate(model.gates):
        if "attention_tokens" in gates:
            gate = gates["attention_tokens"]
            hooks.append(gate.register_forward_hook(lambda _, args, out, layer=layer: found.update({layer: args[4]})))
    out = run(model, layout, pixel_values, **options)
    for hook in hooks:
        hook.remove()
    return found, out


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_is_read_is_that_of_the_layer_before(tiny_vit, layout, attention):
    vit = tiny_vit(3, attn_implementation=attention)
    gates = [{"gate": "token", "score": "cls_attention_value", "keep": 1.0, "layers": [1, 2]}]
    model, pixels = DynViTForImageClassification.from_vit(vit, gates=gates), images(3)
    found, _ = seen_by_gates(model, layout, pixels)
    vit.set_attn_implementation("eager")
    with torch.no_grad():
        out = vit(pixels, output_attentions=True, output_hidden_states=True)
        for layer in (1, 2):
            before = vit.vit.layers[layer - 1]
            values = before.attention.v_proj(before.layernorm_before(out.hidden_states[layer - 1]))
            assert_close(found[layer].attention, out.attentions[layer - 1][:, :, 0].mean(1))
            assert_close(found[layer].values, values.norm(dim=-1))


def test_merged_tokens_are_attended_to_as_often_as_they_have_patches(tiny_vit):
    gates = [{"gate": "tome", "merged": 8, "layers": [0]}, {"gate": "token", "keep": 0.5, "layers": [1]}]
    model, pixels = DynViTForImageClassification.from_vit(tiny_vit(2), gates=gates), images(2)
    pixels[:] = pixels[..., :8, :8].repeat(1, 1, 4, 4)  # one patch sixteen times, apart by its place
    torch.nn.init.zeros_(model.vit.embeddings.position_embeddings)
    (found, _), (other, _) = (seen_by_gates(model, layout, pixels) for layout in ("masked", "packed"))
    share = found[1].attention / found[1].size
    assert_close(share[found[1].alive > 0.5][1:9], share[0, 1].expand(8), rtol=1e-3, atol=1e-5)
    kept = other[1].places.index
    assert_close(other[1].attention, found[1].attention.gather(1, kept))
    assert found[1].attention.sum(1).tolist() == pytest.approx([1.0] * 2)


MIXED = {
    "in every layer": [{"gate": "token", "keep": 0.8, "rest": "fuse", "layers": [1, 2, 3]}],
    "of images that skip": [{"gate": "block", "layers": [1]}, {"gate": "token", "score": "cls_attention_value", "mass": 0.8, "layers": [2]}],
    "of halves that skip": [{"gate": "sublayer", "layers": [1]}, {"gate": "token", "samples": 9, "layers": [2, 3]}],
    "of tokens that pass": [{"gate": "patch", "layers": [1, 2]}, {"gate": "token", "keep": 0.6, "layers": [3]}],
    "of tokens that come back": [{"gate": "token", "keep": 0.6, "rest": "pass", "layers": [1, 2, 3]}],
    "after merges": [{"gate": "merge", "layers": [0, 1]}, {"gate": "token", "mass": 0.7, "rest": "merge", "layers": [2, 3]}],
    "beside heads": [{"gate": "head"}, {"gate": "token", "top": 5, "rest": "fuse", "layers": [2]}],
    "by a threshold": [{"gate": "token", "threshold": 0.5, "scale": 500.0, "rest": "fuse", "layers": [1, 3]}],
}  # fmt: skip


@pytest.mark.usefixtures("counted_attention")
@pytest.mark.parametrize("mask", [None, [[True, True], [True, True], [False, False], [True, True]]])
@pytest.mark.parametrize("name", MIXED)
def test_layouts_agree_whatever_stands_before(tiny_vit, name, mask):
    model, pixels = gated(tiny_vit(4), MIXED[name]), images(5)
    model.config.layer_mask = mask
    (seen, masked), (_, packed) = (seen_by_gates(model, layout, pixels) for layout in ("masked", "packed"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost)
    reading = [layer for layer in seen if getattr(model.gates[layer]["attention_tokens"], "reads_attention", False)]
    assert all(seen[layer].attention is not None for layer in reading if mask is None)
    for one, other in zip(packed.decisions, masked.decisions, strict=True):
        for a, b in zip(one.keeps().values(), other.keeps().values(), strict=True):
            assert torch.equal(a, b)


def test_attention_is_noted_only_where_a_gate_reads_it(tiny_vit, monkeypatch):
    def refuse(*_):
        raise AssertionError("nobody reads this")

    monkeypatch.setattr("hf_dynvit.model.layer_packed.note_rows", refuse)
    monkeypatch.setattr("hf_dynvit.model.layer_masked.cls_attention", refuse)
    for name in ("all", "patch merged", "token by contrast", "token by predictor"):
        for layout in ("masked", "packed"):
            run(gated(tiny_vit(2), GATE_SETS[name]), layout, images(2))
    run(gated(tiny_vit(2), GATE_SETS["token by attention, fused"]), "packed", images(2), gating="open")
    with pytest.raises(AssertionError, match="nobody reads"):
        run(gated(tiny_vit(2), GATE_SETS["token by attention, fused"]), "packed", images(2))


def test_attention_is_read_from_the_second_layer_on(tiny_vit):
    with pytest.raises(
        ValueError, match="reads the attention of the layer before: its layers must be 1 or more, got 0"
    ):
        DynViTForImageClassification.from_vit(tiny_vit(2), gates=[{"gate": "token", "keep": 0.5}])
