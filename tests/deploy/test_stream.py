"""The forward that is exported computes what the packed one does, before any runtime takes part."""

import pytest
import torch
from conftest import build_tiny_vit
from exported_models import varied
from models import GATE_SETS, gated, images

from hf_dynvit.deploy.checks import check_model
from hf_dynvit.deploy.leaving import leave, word_places
from hf_dynvit.deploy.parting import Parting
from hf_dynvit.deploy.stream import Stream
from hf_dynvit.deploy.tokens import Tokens
from hf_dynvit.model.preset_gates import PRESET_GATES


MIXED = {
    "block upfront, then drop": [
        {"gate": "block", "upfront": True, "bypass": "mean", "layers": [0, 1]},
        {"gate": "patch", "drop": True, "layers": [2]},
    ],
    "merge, then fuse by the attention of a layer that some skip": [
        {"gate": "merge", "distance": 4.0, "layers": [0]},
        {"gate": "sublayer", "bypass": "linear", "layers": [0, 1]},
        {"gate": "token", "keep": 0.6, "rest": "fuse", "layers": [1, 2]},
    ],
    "mass of values": [{"gate": "token", "score": "cls_attention_value", "mass": 0.7, "layers": [1, 2]}],
    "samples, fused": [{"gate": "token", "samples": 9, "rest": "fuse", "layers": [1, 2]}],
    "top, merged": [{"gate": "token", "top": 7, "score": "norm", "rest": "merge", "layers": [1, 2]}],
    "more at the top than there are": [{"gate": "token", "top": 70, "score": "norm", "rest": "merge"}],
    "rank, merged": [{"gate": "token", "threshold": 0.5, "by_rank": True, "rest": "merge", "layers": [1, 2]}],
    "tome after merge": [{"gate": "merge", "layers": [0]}, {"gate": "tome", "merged": 3, "layers": [1, 2]}],
    "as many merge after merge": [
        {"gate": "merge", "layers": [0]},
        {"gate": "merge", "distance": 4.0, "merged": 3, "layers": [1, 2]},
    ],
    "pitome after patch": [
        {"gate": "patch", "drop": True, "layers": [0]},
        {"gate": "pitome", "merged": 3, "layers": [1, 2]},
    ],
}


def exports(gates):
    try:
        check_model(gated(build_tiny_vit(3), gates))
    except ValueError:
        return False
    return True


SETS = GATE_SETS | MIXED | {f"preset {name}": name for name in PRESET_GATES}
SETS = {name: gates for name, gates in SETS.items() if exports(gates)}


@pytest.mark.parametrize("many, step", [(False, 1), (False, 4), (True, 1), (True, 16)])
@pytest.mark.parametrize("name", SETS)
def test_the_forward_that_is_exported_computes_what_the_packed_one_does(name, many, step):
    torch.manual_seed(0)
    model, pixel_values = gated(build_tiny_vit(3, num_labels=3), SETS[name]).eval(), images(5)
    check_stream(Stream(model, step=step, many=many), pixel_values)


def check_stream(stream, pixel_values):
    with torch.no_grad():
        expected = stream.model(pixel_values)
        found = [stream.eval()(part) for part in ([pixel_values] if stream.many else pixel_values.split(1))]
    logits, cost = (torch.cat(part) for part in zip(*found, strict=True))
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(cost, expected.cost)


def last_as_read(gates):
    """A model whose last layer is as it is read, or None where that cannot be or has no exported form."""
    try:
        model = gated(build_tiny_vit(3, num_labels=3), gates, last_layer="read").eval()
        check_model(model)
    except ValueError:
        return None
    return model


@pytest.mark.parametrize("many, step, joint", [(False, 1, True), (True, 16, False)])
@pytest.mark.parametrize("name", [name for name, gates in SETS.items() if last_as_read(gates)])
def test_so_does_one_whose_last_layer_is_as_it_is_read(name, many, step, joint):
    torch.manual_seed(0)
    model, pixel_values = last_as_read(SETS[name]), images(4)
    check_stream(Stream(model, step=step, many=many, joint=joint), pixel_values)


def test_most_sets_of_gates_export():
    assert {"token by attention, fused", "pitome", "halting", "patch merged", "sublayer"} <= set(SETS)
    assert {f"preset {name}" for name in PRESET_GATES if name not in ("adavit-official", "random-tokens")} <= set(SETS)


@pytest.mark.parametrize("name", ["evit", "topk", "dynamicvit", "cropr", "tome", "pitome", "diffrate"])
def test_a_graph_knows_ahead_how_many_tokens_fixed_numbers_leave(name):
    model = gated(build_tiny_vit(4), name).eval()
    with torch.no_grad():
        decisions = model(images(2)).decisions
    known = [17 if one.attention_tokens is None else one.attention_tokens[0].sum() for one in decisions]
    assert [parting.fixed for parting in Stream(model).partings] == known


def test_where_images_decide_for_themselves_it_does_not():
    model = gated(build_tiny_vit(3), [{"gate": "merge", "layers": [1]}, {"gate": "tome", "layers": [2]}])
    assert [parting.fixed for parting in Stream(model).partings] == [17, None, None]


@pytest.mark.parametrize("step", [4, 16])
def test_tokens_that_round_their_number_up_come_last_and_weigh_nothing(step):
    model, _ = varied(build_tiny_vit(1), [{"gate": "merge"}])
    tokens = Tokens(torch.randn(2, 17, 32), torch.tensor([17.0, 17.0]))
    gate, words = model.gates[0]["attention_tokens"], word_places(17, 1)
    for many in (False, True, True):
        before = tokens.x.shape[1]
        tokens, _ = leave(gate, tokens.x, tokens, words, Parting(many=many, step=step))
        length, fullest = tokens.x.shape[1], int(tokens.count.max())
        assert length == before or (length % step == 0 and length - fullest < step)
        for alive, size in zip(tokens.count.int().tolist(), tokens.size, strict=True):
            assert (size[:alive] >= 1).all() and (size[alive:] == 0).all() and size.sum() == 17


def test_images_that_skip_are_not_computed_but_for_one_where_all_do():
    model, pixel_values = varied(build_tiny_vit(3), [{"gate": "block", "upfront": True, "pool": "mean"}])
    pixel_values, rows = torch.from_numpy(pixel_values), []
    stream = Stream(model, many=True).eval()
    with torch.no_grad():
        runs = [int(decision.sublayers[:, 0].sum()) for decision in model(pixel_values).decisions]
        for layer in model.vit.layers:
            layer.mlp.register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
        stream(pixel_values)
    assert rows == [max(1, count) * 17 for count in runs] and min(runs) < len(pixel_values)
