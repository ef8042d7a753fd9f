"""A latency table predicts what layers, gates and the rest take by what is computed; it is measured, saved and read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import GATE_SETS, gated, images, latency_table, run

from hf_dynvit import DynViTForImageClassification, LayerDecisions
from hf_dynvit.measure import LatencyTable, clocked, measure_latencies
from hf_dynvit.measure.latency import network_of
from hf_dynvit.measure.layer_times import clocked_together
from hf_dynvit.model.cost import layer_macs


FACTS = {"device": "a CPU", "threads": 1, "dtype": "float32", "prepacked": False, "batch_size": 1}
TIMES = {"tokens": [1, 9, 17], "attention": [1.0, 3.0, 6.0], "mlp": [2.0, 4.0, 8.0], "rest": 0.5}


def keeps(count, of=17):
    return (torch.arange(of) < count).unsqueeze(0)


def outputs(*decisions):
    return SimpleNamespace(cost=torch.ones(1), decisions=decisions)


def test_a_layer_takes_what_its_tokens_take_and_its_gates_by_what_they_leave_out(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "patch", "drop": True, "layers": [0]}, {"gate": "sublayer", "layers": [2]}])
    groups = [
        {"layers": [0], "open": [0.1, 0.1, 0.1], "closed": [0.2, 0.2, 0.4]},
        {"layers": [2], "open": [0.3, 0.3, 0.3], "closed": [0.5, 0.7, 0.9]},
    ]
    table = LatencyTable(**FACTS, **TIMES, gates=groups)
    nothing = LayerDecisions()
    open_ms = table.of_layers(model, outputs(nothing, nothing, LayerDecisions(sublayers=torch.ones(1, 2))))
    torch.testing.assert_close(open_ms.squeeze(1), torch.tensor([14.1, 14.0, 14.3]))
    dropped = LayerDecisions(keeps(5), keeps(5))
    alone = LayerDecisions(keeps(5), keeps(5), sublayers=torch.tensor([[True, False]]))
    found = table.of_layers(model, outputs(dropped, dropped, alone)).squeeze(1)
    torch.testing.assert_close(found, torch.tensor([2.0 + 3.0 + 0.4, 2.0 + 3.0, 2.0 + 0.6]))
    total = table.milliseconds(model, outputs(dropped, dropped, alone))
    assert total.shape == (1,) and total.item() == pytest.approx(found.sum().item() + 0.5)
    model.config.layer_mask = [[True, True], [True, True], [False, False]]
    off = LayerDecisions(keeps(5), keeps(5), sublayers=torch.zeros(1, 2))
    assert table.of_layers(model, outputs(dropped, dropped, off))[2] == 0  # its gates are not asked


def test_without_its_gates_a_model_takes_what_runs_and_what_its_bypasses_add(tiny_vit):
    off = LayerDecisions(sublayers=torch.zeros(1, 2))
    for bypass, added in (("none", 0.0), ("linear", 0.5)):
        model = gated(tiny_vit(3), [{"gate": "block", "bypass": bypass, "layers": [1, 2]}])
        table = latency_table(model)  # closed gates take half a millisecond more than open ones
        ms = table.of_layers(model, outputs(LayerDecisions(), LayerDecisions(), off), asked=False).squeeze(1)
        torch.testing.assert_close(ms, torch.tensor([5.1, 5.1, added]))
        assert table.dense(model) == pytest.approx(3 * 5.1 + 2.0)
        table.check(model)
    with pytest.raises(
        ValueError, match=r"17 tokens, with gates in layers \[1, 2\]; this one .* in layers \[0, 1, 2\]"
    ):
        table.check(gated(tiny_vit(3), [{"gate": "block"}]))
    with pytest.raises(ValueError, match="a model that runs 9 tokens, .* this one runs 17 tokens"):
        latency_table(model, tokens=[1, 9]).check(model)


def test_a_mask_leaves_the_bypass_of_a_layer_to_be_counted(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "block", "bypass": "linear"}])
    model.config.layer_mask = [[True, True], [True, True], [False, False]]
    decisions = LayerDecisions(), LayerDecisions(), LayerDecisions(sublayers=torch.zeros(1, 2))
    ms = latency_table(model).of_layers(model, outputs(*decisions)).squeeze(1)
    torch.testing.assert_close(ms, torch.tensor([5.6, 5.6, 0.5]))  # where the gate is not asked


def fake_clock(model):
    """Times calls by what they would compute: a microsecond for each thousand multiply-accumulates of the layers."""

    def medians(calls, rounds):
        seconds = {}
        for name, call in calls.items():
            found = call(0)
            decisions = found.decisions if hasattr(found, "decisions") else found
            count = model.tokens_run if name == "whole" else name[1]
            seconds[name] = sum(map(lambda decision: macs(model, decision, count), decisions)) / 1e9
        return seconds

    return medians


def macs(model, decision, count):
    """Mean multiply-accumulates of a layer under its decision, of `count` tokens that enter."""
    tokens = torch.tensor([float(count)])
    tokens = tokens if decision.attention_tokens is None else decision.attention_tokens.float().sum(1)
    on = torch.ones(1, 2) if decision.sublayers is None else decision.sublayers.float()
    found = layer_macs(model.config, tokens * on[:, 0], tokens * on[:, 1], model.config.num_attention_heads)
    return found.mean().item()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("gates", ["patch merged", "merge by distance", "sublayer", "block upfront", "patch on block"])
def test_what_is_measured_predicts_forwards(tiny_vit, gates, batch):
    model = gated(tiny_vit(4), GATE_SETS[gates])
    table = measure_latencies(model, images(batch), medians=fake_clock(model))
    assert table.batch_size == batch and table.tokens[-1] == model.num_tokens and len(table.tokens) > 3
    assert table.attention == sorted(table.attention) and table.mlp == sorted(table.mlp)
    assert [group["layers"] for group in table.gates] == [[0, 1, 2, 3]]
    (group,), layer = table.gates, table.attention[-1] + table.mlp[-1]
    assert max(map(abs, group["open"])) < 1e-6  # by this clock gates take nothing
    assert max(map(abs, group["closed"])) < 0.15 * layer  # what is left lies between the counts, where lines are
    assert table.rest == pytest.approx(0.0, abs=1e-6)
    out = run(model, "packed", images(8))
    shares = table.of_layers(model, out).sum(0) / sum(
        torch.tensor([macs(model, decision, model.num_tokens) for decision in [LayerDecisions()] * 4]) / 1e6 / batch
    )
    assert 0.1 < shares.mean() < 1.0 and shares.std() > 0


def test_a_model_that_resizes_images_is_measured_on_the_tokens_that_run(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "patch", "drop": True, "layers": [1]}], resolution=24)
    table = measure_latencies(model, images(1), medians=fake_clock(model))
    assert table.tokens[-1] == model.tokens_run < model.num_tokens and table.rest == pytest.approx(0.0, abs=1e-6)
    out = run(model, "packed", images(4))
    first = table.of_layers(model, out)[0]
    torch.testing.assert_close(first, torch.full((4,), table.attention[-1] + table.mlp[-1]))
    measure_latencies(model, images(1, size=40), rounds=1)  # of any size


def test_alike_gates_are_measured_together(tiny_vit):
    gates = [{"gate": "patch", "layers": [0, 2]}, {"gate": "sublayer", "layers": [1, 2, 3]}]
    model = gated(tiny_vit(5), gates)
    table = measure_latencies(model, images(1), medians=lambda calls, rounds: dict.fromkeys(calls, 1e-3))
    assert [group["layers"] for group in table.gates] == [[0], [1, 3], [2]]


def test_measuring_leaves_the_model_and_the_clock_has_the_last_word(tiny_vit):
    model = gated(tiny_vit(2), GATE_SETS["merge"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train().layout = "masked"
    table = measure_latencies(model, images(2), rounds=1)
    assert model.training and model.layout == "masked"
    model.eval().layout = None
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(value > 0 for value in table.attention) and table.device and table.threads >= 1
    ms = clocked(model, [images(4), images(4)], medians=lambda calls, rounds: {index: 0.02 for index in calls})
    assert ms == pytest.approx(5.0)  # two forwards of 20 ms for eight images


def test_several_models_are_clocked_in_the_same_turns(tiny_vit):
    """Each call of each model is one of the same list, which `interleaved_medians` takes in turns."""
    models = {name: DynViTForImageClassification.from_vit(tiny_vit()).train() for name in ("one", "other")}
    ran = []

    def medians(calls, rounds):
        for name, call in calls.items():
            ran.append(name)
            call(0)
            assert not any(model.training for model in models.values())
        return {(model, index): {"one": 0.02, "other": 0.04}[model] for model, index in calls}

    ms = clocked_together(models, [images(4), images(2)], medians=medians)
    assert ms == {"one": pytest.approx(40 / 6), "other": pytest.approx(80 / 6)}
    assert ran == [("one", 0), ("one", 1), ("other", 0), ("other", 1)] and models["one"].training


def test_a_table_of_a_wider_or_deeper_model_is_refused(tiny_vit):
    vit = tiny_vit(2)
    known = latency_table(gated(vit, None))
    table = replace(known, sizes=network_of(gated(vit, None)))
    for checked in (known, table):  # of an earlier day no sizes are known
        checked.check(gated(vit, None))
    for other in (tiny_vit(3), tiny_vit(2, hidden_size=64), tiny_vit(2, intermediate_size=48)):
        with pytest.raises(
            ValueError, match=r"the latency table is of another model: layers, channels, .* were \[2, 32,"
        ):
            table.check(gated(other, None))


def test_a_table_is_saved_and_read_and_nothing_else_is(tmp_path):
    table = LatencyTable(**FACTS, **TIMES, gates=[{"layers": [0], "open": [0.0] * 3, "closed": [0.1] * 3}])
    table.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == table
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="other.json holds no latency table"):
        LatencyTable.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"tokens of a latency table must rise, got \[9, 1, 17\]"):
        LatencyTable(**FACTS, **{**TIMES, "tokens": [9, 1, 17]}, gates=[])
    with pytest.raises(ValueError, match=r"3 token counts needs as many times, got \[3, 2\]"):
        LatencyTable(**FACTS, **{**TIMES, "mlp": [1.0, 2.0]}, gates=[])
