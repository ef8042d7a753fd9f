"""A classifier that reads [CLS] alone needs no more of its last layer: the same logits, gradients and decisions, and less to compute."""

import copy

import pytest
import torch
from models import EXTREMES, GATE_SETS, extreme_decisions, gated, images, random_decisions, run
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from hf_dynvit import DynViTConfig, DynViTForImageClassification, DynViTModel, LayerDecisions
from hf_dynvit.measure.latency import check_layers
from hf_dynvit.model import packed_attention
from hf_dynvit.model.cost import dense_macs
from hf_dynvit.model.host_vit import ViTHost
from hf_dynvit.model.packed_attention import few_attention
from hf_dynvit.search.export import burn_in
from hf_dynvit.training.harm import _saving


LAYERS = 3
READABLE = [name for name, gates in GATE_SETS.items() if not any(gate.get("on") == "mlp" for gate in gates)]


def few(model):
    """The same model with a last layer as it is read."""
    model = copy.deepcopy(model)
    model.config.last_layer = "read"
    return model


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", READABLE)
def test_logits_and_decisions_are_those_of_the_whole_layer_and_less_is_run(tiny_vit, name, batch):
    whole = gated(tiny_vit(LAYERS), GATE_SETS[name])
    pixel_values = images(batch)
    wanted = run(whole, "masked", pixel_values)
    for layout in ("packed", "masked"):
        found = run(few(whole), layout, pixel_values)
        assert_close(found.logits, wanted.logits)
        for one, other in zip(found.decisions, wanted.decisions, strict=True):
            assert one.keeps().keys() == other.keeps().keys()
            assert all(torch.equal(one.keeps()[slot] > 0.5, keep > 0.5) for slot, keep in other.keeps().items())
        assert (found.cost <= wanted.cost).all()


@pytest.mark.usefixtures("counted_attention")
@pytest.mark.parametrize("name", EXTREMES)
def test_the_cost_is_what_runs_at_the_extremes(tiny_vit, name):
    model = few(gated(tiny_vit(LAYERS), None))
    counted, claimed = _counted_and_claimed(model, images(3), decisions=extreme_decisions(name, 3, LAYERS))
    assert counted == claimed


@pytest.mark.usefixtures("counted_attention")
def test_the_cost_is_what_runs_for_many_random_decisions(tiny_vit):
    whole = gated(tiny_vit(LAYERS), None)
    for step in range(20):
        decisions, pixel_values = random_decisions(4, LAYERS, keep=step / 20), images(4)
        counted, claimed = _counted_and_claimed(few(whole), pixel_values, decisions=decisions)
        assert counted == claimed
        wanted = run(whole, "masked", pixel_values, decisions=decisions)
        assert_close(run(few(whole), "packed", pixel_values, decisions=decisions).logits, wanted.logits)


def _counted_and_claimed(model, pixel_values, **options):
    model.layout = "packed"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(pixel_values, **options)
    dense = dense_macs(model.config, 17, model.num_labels)
    return counter.get_total_flops() / 2, sum(round(float(spent) * dense) for spent in out.cost)


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("bypass", ["mean", "diagonal", "linear", "low_rank"])
def test_what_is_added_in_place_of_a_sublayer_is_added_to_cls_and_counted_so(tiny_vit, granularity, bypass):
    gates = [{"gate": "block", "granularity": granularity, "bypass": bypass}]
    whole = gated(tiny_vit(LAYERS), gates)
    pixel_values = images(6)
    wanted, found = run(whole, "masked", pixel_values), run(few(whole), "packed", pixel_values)
    assert_close(found.logits, wanted.logits)
    assert_close(found.cost, run(few(whole), "masked", pixel_values).cost)
    for model, layout in ((whole, "masked"), (few(whole), "packed")):
        model.config.layer_mask = [[True, True]] * (LAYERS - 1) + [[False, False]]
        assert_close(run(model, layout, pixel_values).logits, run(whole, "masked", pixel_values).logits)


def test_without_gates_it_costs_what_the_closed_form_says(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(LAYERS), last_layer="read")
    full, less = (dense_macs(model.config, 17, model.num_labels, last) for last in (None, "read"))
    assert run(model, "packed", images(2)).cost.tolist() == pytest.approx([less / full] * 2)
    assert less < full


def test_what_the_readme_says_of_a_vit_of_12_layers():
    shape = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    vit = ViTForImageClassification(ViTConfig(**shape, num_labels=1000)).eval()
    saved = {}
    for name, gates in (("plain", None), ("merged", [{"gate": "tome", "merged": 15}])):
        whole, less = (DynViTForImageClassification.from_vit(vit, gates, last_layer=last) for last in (None, "read"))
        spent, spent_less = (run(model, "packed", images(1, 224)) for model in (whole, less))
        saved[name] = (spent.cost - spent_less.cost).item()
    assert 1 - saved["plain"] == pytest.approx(0.93, abs=0.005) and saved["merged"] == pytest.approx(0.005, abs=0.0005)
    assert spent.decisions[-1].attention_tokens.sum() == 17


def test_gradients_are_those_of_the_masked_layout(tiny_vit):
    given = [{"gate": "merge", "layers": [0, 2]}, {"gate": "head", "layers": [1, 2]}]
    model = few(gated(tiny_vit(LAYERS), given)).train()
    pixel_values, found = images(4), {}
    for layout in ("packed", "masked"):
        model.zero_grad()
        model.layout = layout
        model(pixel_values, labels=torch.arange(4) % 2, gating="threshold").loss.backward()
        found[layout] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found["packed"].keys() == found["masked"].keys()
    for name, grad in found["packed"].items():
        assert_close(grad, found["masked"][name], msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_prepacked_in_both_precisions(tiny_vit, dtype):
    whole = gated(tiny_vit(LAYERS), [{"gate": "tome", "merged": 3}]).to(dtype)
    pixel_values = images(4).to(dtype)
    wanted = run(whole, "masked", pixel_values).logits
    assert_close(run(few(whole).prepack(), "packed", pixel_values).logits, wanted, atol=0.02, rtol=0.02)


def test_hidden_states_and_attentions_are_whole(tiny_vit):
    whole = gated(tiny_vit(LAYERS), [{"gate": "merge"}])
    whole.set_attn_implementation("eager")
    pixel_values = images(2)
    wanted, found = (run(one, None, pixel_values, output_hidden_states=True) for one in (whole, few(whole)))
    assert all(map(torch.equal, found.hidden_states, wanted.hidden_states))
    assert run(few(whole), None, pixel_values, output_attentions=True).attentions[-1].shape[2] == 17


def test_features_of_a_backbone_are_whole_and_cost_the_whole(tiny_vit, tmp_path):
    few(gated(tiny_vit(LAYERS), None)).save_pretrained(tmp_path)
    out = run(DynViTModel.from_pretrained(tmp_path), "packed", images(2))
    assert out.last_hidden_state.shape[1] == 17 and out.cost.tolist() == [1.0, 1.0]


def test_a_replay_without_cls_runs_the_layer_as_it_says(tiny_vit):
    whole, pixel_values = gated(tiny_vit(LAYERS), None), images(2)
    kept = torch.ones(2, 17, dtype=torch.bool)
    kept[:, 0] = False
    decisions = [LayerDecisions()] * (LAYERS - 1) + [LayerDecisions(kept, kept)]
    wanted, found = (run(one, "packed", pixel_values, decisions=decisions) for one in (whole, few(whole)))
    assert_close(found.logits, wanted.logits)
    assert_close(found.cost, wanted.cost)


def test_it_is_saved_only_where_it_says_something(tiny_vit, tmp_path):
    model = few(gated(tiny_vit(LAYERS), [{"gate": "merge"}]))
    model.save_pretrained(tmp_path)
    loaded, pixel_values = DynViTForImageClassification.from_pretrained(tmp_path), images(2)
    assert torch.equal(run(loaded, "packed", pixel_values).cost, run(model, "packed", pixel_values).cost)
    assert "last_layer" not in DynViTConfig().to_dict()


def test_what_cannot_be_left_out_is_refused(tiny_vit, monkeypatch):
    with pytest.raises(ValueError, match=r"last_layer must be one of \(None, 'read'\), got 'all'"):
        DynViTConfig(last_layer="all")
    gates = [{"gate": "patch", "on": "mlp"}]
    with pytest.raises(ValueError, match="leaves PatchGate of the last layer no tokens to decide"):
        DynViTForImageClassification.from_vit(tiny_vit(LAYERS), gates=gates, last_layer="read")
    before = DynViTForImageClassification.from_vit(
        tiny_vit(LAYERS), gates=[gates[0] | {"layers": [0]}], last_layer="read"
    )
    assert run(before, "packed", images(1)).cost < 1
    with pytest.raises(ValueError, match="last_layer of this model is 'read': begin with a model without it"):
        check_layers(before)
    monkeypatch.setattr(ViTHost, "reads_protected", False)
    with pytest.raises(ValueError, match="is for classifiers that read protected tokens alone"):
        run(before, "packed", images(1))


def test_a_layer_that_somebody_looks_at_is_whole_and_costs_the_whole(tiny_vit):
    model, shapes = few(gated(tiny_vit(LAYERS), None)), []
    handle = model.vit.layers[-1].register_forward_hook(lambda layer, given, out: shapes.append(out.shape))
    assert run(model, "packed", images(2)).cost.tolist() == [1.0, 1.0] and shapes[0][1] == 17
    handle.remove()
    assert run(model, "packed", images(2)).cost.max() < 1


def test_what_a_unit_saves_is_that_of_its_own_layer(tiny_vit):
    whole = gated(tiny_vit(LAYERS), [{"gate": "head"}, {"gate": "block"}])
    saved = {}
    for name, model in (("whole", whole), ("few", few(whole))):
        with torch.no_grad():
            out = model(images(2), gating="open")
            opened = run(model, "masked", images(2))
        decisions = [one._replace(heads=torch.ones(2, 4), sublayers=torch.ones(2, 2)) for one in out.decisions]
        opened.decisions = tuple(decisions)
        for layer in range(LAYERS):
            for slot in ("heads", "sublayers"):
                saved[name, layer, slot] = _saving(model, opened, (layer, slot), 0)[0].item()
    for slot in ("heads", "sublayers"):
        assert saved["few", 0, slot] == pytest.approx(saved["whole", 0, slot])
        assert saved["few", LAYERS - 1, slot] < 0.6 * saved["whole", LAYERS - 1, slot]


@pytest.mark.parametrize("bias", [False, True])
def test_images_of_other_lengths_are_padded_with_nothing(monkeypatch, bias):
    lengths, more = [3, 5, 2], torch.zeros(10) if bias else None
    q, k, v = (torch.randn(rows, 2, 4) for rows in (3, 10, 10))
    wanted = few_attention(q, k, v, lengths, None, 0.0, more)
    monkeypatch.setattr(packed_attention, "on_cpu", lambda query: False)
    assert_close(few_attention(q, k, v, lengths, None, 0.0, more), wanted)
    k[5], v[4] = float("nan"), float("inf")  # of the second image
    found = few_attention(q, k, v, lengths, None, 0.0, more)
    assert_close(found[[0, 2]], wanted[[0, 2]])
    assert not found[1].isfinite().all()


def test_a_mask_is_burnt_in_also_where_the_layer_that_is_last_then_needs_all_tokens(tiny_vit):
    model = gated(tiny_vit(LAYERS), [{"gate": "patch", "on": "mlp", "layers": [0, 1]}], last_layer="read").eval()
    model.config.layer_mask = [[True, True]] * (LAYERS - 1) + [[False, False]]
    pixel_values = images(2)
    small = burn_in(model)
    assert small.config.last_layer is None
    assert_close(run(small, "packed", pixel_values).logits, run(model, "packed", pixel_values).logits)


def test_an_unknown_word_is_refused_also_of_a_model_that_is_there(tiny_vit):
    model = gated(tiny_vit(LAYERS), None)
    model.config.last_layer = "cls"
    with pytest.raises(ValueError, match="last_layer must be one of"):
        run(model, "packed", images(1))
