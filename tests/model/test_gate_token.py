"""The gate `token` keeps what its paper keeps: scores, amounts and rests by hand, and the published counts of MACs."""

import pytest
import torch
from models import GATE_SETS, gated, images, run
from torch.testing import assert_close
from transformers import ViTConfig, ViTForImageClassification

from hf_dynvit import DynViTForImageClassification, calibrate
from hf_dynvit.model import encoder
from hf_dynvit.model.cost import layer_macs, stem_macs
from hf_dynvit.model.decisions import UNTOUCHED, TokenState
from hf_dynvit.model.gates import build_gate
from hf_dynvit.model.merging import merge


DEIT_S = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
TOKEN_SETS = [name for name in GATE_SETS if name.startswith("token")]


def token_gate(**options):
    return build_gate("token", ViTConfig(hidden_size=32, num_attention_heads=4), options)


def test_the_rest_becomes_one_token_their_mean(tiny_vit):
    gate, x = token_gate(score="norm", keep=0.5, rest="fuse"), torch.randn(2, 9, 32)
    lengths = torch.tensor([9.0, 8, 1, 7, 2, 6, 3, 5, 4]).expand(2, -1)
    tokens = x / x.norm(dim=-1, keepdim=True) * lengths.unsqueeze(-1)
    action = gate(tokens, "threshold")
    assert action.keep.nonzero()[:, 1].view(2, -1).tolist() == [[0, 1, 3, 5, 7, 8]] * 2  # 8 takes on 2, 4 and 6
    assert action.into.tolist() == [[0, 8, 8, 8, 8, 8, 8, 8, 8]] * 2
    size = torch.tensor([1.0, 1, 2, 1, 1, 1, 3, 1, 2]).expand(2, -1)
    merged, sizes, _ = merge(x, action.keep, action.into, TokenState(size=size), packed=False)
    assert_close(merged[:, 8], (2 * x[:, 2] + x[:, 4] + 3 * x[:, 6] + 2 * x[:, 8]) / 8)
    assert sizes[0, 8] == 8 and torch.equal(merged[:, [0, 1, 3]], x[:, [0, 1, 3]])
    nobody = gate(tokens, "threshold", state=TokenState(torch.arange(9).eq(0).expand(2, -1)))
    assert torch.equal(nobody.into[:, 0], torch.zeros(2, dtype=torch.long)) and nobody.keep[:, 0].all()


def counts(preset_or_gates, patches=14):
    """Tokens of each layer of twelve, for one image of `patches` x `patches`."""
    config = ViTConfig(image_size=2 * patches, patch_size=2, hidden_size=8, num_attention_heads=2, intermediate_size=8, num_labels=2)  # fmt: skip
    config.num_hidden_layers = 12
    model = DynViTForImageClassification.from_vit(ViTForImageClassification(config).eval(), gates=preset_or_gates)
    out = run(model, "masked", images(1, 2 * patches))
    return [patches**2 + 1 if d.attention_tokens is None else int(d.attention_tokens.sum()) for d in out.decisions]


def giga_macs(attention, mlp):
    """10^9 MACs of DeiT-S whose layers run on so many tokens."""
    layers = sum(layer_macs(DEIT_S, a, m, 6) for a, m in zip(attention, mlp, strict=True))
    return (stem_macs(DEIT_S, 197, 1000) + layers) / 1e9


@pytest.mark.parametrize(
    "gates, published",
    [
        ("evit", 3.0),  # EViT, table 1: DeiT-S, keep 0.7, fused
        ([{"gate": "token", "keep": 0.8, "rest": "fuse", "layers": [3, 6, 9]}], 3.5),
        ([{"gate": "token", "keep": 0.6, "rest": "drop", "layers": [3, 6, 9]}], 2.6),
        ("dynamicvit", 2.9),  # DynamicViT, table 1: without its predictors
        ([{"gate": "tome", "merged": 13}], 2.7),  # ToMe, table 3
        ("tome", 3.4),
    ],
)
def test_tokens_at_the_places_of_the_paper_cost_what_it_says(gates, published):
    left = counts(gates)
    assert round(giga_macs([197] * 12, [197] * 12), 1) == 4.6
    inside_the_layer = giga_macs([197, *left[:-1]], left)  # between attention and MLP
    before_it = giga_macs(left, left)
    within = before_it if gates == "dynamicvit" else inside_the_layer  # whose predictors stand between layers
    assert within == pytest.approx(published, abs=0.06)
    assert before_it <= inside_the_layer


def test_counts_of_evit_and_topk():
    assert counts("evit") == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3  # [CLS], ceil(0.7 n) and the rest
    assert counts("topk") == counts("random-tokens") == [197] * 3 + [139] * 3 + [98] * 3 + [69] * 3
    assert counts("tome")[-1] == 197 - 12 * 8


def test_ats_keeps_fewer_the_more_unequal_the_scores_are(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates="ats")
    assert [len(gates) for gates in model.gates] == [0, 1, 1, 1]
    kept = torch.stack([d.attention_tokens.sum(1) for d in run(model, "packed", images(16)).decisions[1:]])
    assert len(kept.unique()) > 3 and (kept[0] < 17).all() and (kept.diff(dim=0) <= 0).all()


def test_a_line_with_a_threshold_is_a_patch_gate(tiny_vit):
    vit = tiny_vit(3)
    patch = gated(vit, [{"gate": "patch", "drop": True, "merge": True}])
    token = gated(vit, [{"gate": "token", "score": "linear", "threshold": 0.5, "rest": "merge"}])
    token.load_state_dict(patch.state_dict())
    one, other = (
        run(model, "packed", images(3, generator=torch.Generator().manual_seed(2))) for model in (patch, token)
    )
    assert torch.equal(one.logits, other.logits) and one.cost.mean() < 0.9


def test_a_score_with_a_threshold_is_brought_to_a_budget_and_images_differ(tiny_vit):
    gates = [{"gate": "token", "threshold": 0.5, "scale": 200.0, "layers": [1, 2]}]
    model, pixels = DynViTForImageClassification.from_vit(tiny_vit(4), gates=gates), images(32)
    pixels[:16] *= 0.2
    fresh = run(model, "packed", pixels)
    assert all(keep.all() for decision in fresh.decisions for keep in decision.keeps().values())
    _, cost = calibrate(model, [pixels], 0.7)
    model.layout = None
    spent = run(model, "packed", pixels).cost
    assert cost == pytest.approx(0.7, abs=0.02) and spent.mean().item() == pytest.approx(cost) and spent.std() > 0.01


def test_a_rate_by_rank_is_that_of_its_bias_alike_for_all_images_and_calibrated(tiny_vit):
    model, pixels = DynViTForImageClassification.from_vit(tiny_vit(4), gates="diffrate"), images(16)
    for bias, kept in ((10.0, 16), (1.0, 12), (0.0, 8), (-1.0, 4)):  # of 16, round(16 sigmoid(bias))
        torch.nn.init.constant_(model.gates[1]["attention_tokens"].score.bias, bias)
        decisions = run(model, "packed", pixels).decisions
        assert decisions[1].attention_tokens.sum(1).tolist() == [1 + kept] * 16
    torch.nn.init.constant_(model.gates[1]["attention_tokens"].score.bias, 10.0)
    calibrate(model, [pixels], 0.7)
    model.layout = None
    spent = run(model, "packed", pixels).cost
    assert spent.mean().item() == pytest.approx(0.7, abs=0.05) and spent.std() < 0.01
    model.layout = "masked"
    model.train()(pixels, gating="sample").cost.mean().backward()
    assert all(gate.score.bias.grad > 0 for gate in model.learned_gates())


def test_what_is_sampled_teaches_the_predictor_and_evaluation_keeps_its_rate(tiny_vit):
    model, pixels = gated(tiny_vit(4), "dynamicvit").train(), images(8)
    out = model(pixels, labels=torch.arange(8) % 5)
    kept = torch.stack([d.attention_tokens.detach().sum(1) for d in out.decisions[1:]])
    assert len(kept[0].unique()) > 1
    (out.loss + out.cost.mean()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.gates.parameters())
    decisions = run(model.eval(), "packed", pixels).decisions
    assert [set(d.attention_tokens.sum(1).tolist()) for d in decisions[1:]] == [{13}, {10}, {8}]


def test_a_fused_token_is_scored_as_kept_when_it_is_drawn_and_when_it_is_replayed(tiny_vit):
    gate = gated(tiny_vit(2), GATE_SETS["token by line, fused"]).learned_gates()[0]
    tokens, state = torch.randn(4, 17, 32), UNTOUCHED
    drawn = gate.act(tokens, state=state)
    assert drawn.keep.gather(1, drawn.into).all() and not drawn.keep.all()
    assert_close(gate.act(tokens, drawn.keep, state=state).log_prob, drawn.log_prob)


@pytest.mark.parametrize("name", TOKEN_SETS)
def test_it_is_saved_and_loaded(tiny_vit, tmp_path, name):
    model, pixels = gated(tiny_vit(2), GATE_SETS[name]), images(3)
    model.save_pretrained(tmp_path)
    again, info = DynViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.config.gates == GATE_SETS[name]
    assert torch.equal(run(again, "packed", pixels).logits, run(model, "packed", pixels).logits)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"exactly one of \['keep', 'mass', 'samples', 'threshold', 'top'\], got {}"),
        ({"keep": 0.5, "top": 3}, "exactly one of .*, got {'keep': 0.5, 'top': 3}"),
        ({"keep": 0}, r"keep of a token gate must be in \(0, 1\], got 0"),
        ({"top": 0.5}, "top of a token gate must be an integer in 1..1048576, got 0.5"),
        ({"mass": 2}, r"mass of a token gate must be in \(0, 1\], got 2"),
        ({"keep": 0.5, "rest": "vanish"}, "rest of a token gate must be one of .*'fuse'.*, got 'vanish'"),
        ({"keep": 0.5, "score": ["norm"]}, "score of a token gate must be one of"),
        (
            {"mass": 0.5, "score": "linear"},
            "mass of a token gate needs scores of at least 0.* take keep, top or threshold",
        ),
        ({"threshold": 0.5, "scale": 0}, "scale of a token gate must be a number above 0, got 0"),
        (
            {"threshold": 0.5, "by_rank": True, "score": "linear"},
            "by_rank of a token gate needs .* score that learns nothing",
        ),
        ({"threshold": 0.5, "by_rank": 1}, "by_rank of a token gate must be True or False, got 1"),
        ({"threshold": 1.5}, r"threshold of a gate must be in \(0, 1\), got 1.5"),
        ({"keep": 0.5, "tau": 2.0}, "gate 'token' does not take .*'tau'"),
    ],
)
def test_options_that_say_nothing_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        token_gate(**options)


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_the_token_of_the_rest_counts_once_in_attention(tiny_vit, layout):
    model = gated(tiny_vit(), [{"gate": "token", "score": "norm", "keep": 0.4, "rest": "fuse", "layers": [0, 1]}])
    model.layout, sizes = layout, []
    run_layer = encoder.run_layer

    def noting(*given):
        result = run_layer(*given)
        sizes.append(result[2].size)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "run_layer", noting)
        with torch.no_grad():
            out = model(images(3))
    assert sizes and sizes == [None] * len(sizes)
    assert out.decisions[0].into is not None
