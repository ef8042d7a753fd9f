"""Scores and amounts are what their papers say, by hand; a scorer from outside the package is as good as any."""

import math

import pytest
import torch
from models import gated, images, run
from torch.testing import assert_close
from transformers import ViTConfig

from hf_dynvit import DynViTForImageClassification, Scorer, register_scorer
from hf_dynvit.model.amounts import AMOUNTS
from hf_dynvit.model.decisions import TokenState
from hf_dynvit.model.gates import build_gate
from hf_dynvit.model.scorers import SCORERS, patch_mean


CONFIG = ViTConfig(hidden_size=32, num_attention_heads=4)
SCORES = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2], [0.6, 0.1, 0.1, 0.1, 0.1]])


@pytest.fixture(autouse=True)
def shelf():
    known = dict(SCORERS)
    yield
    SCORERS.clear()
    SCORERS.update(known)


def stays(amount, number, scores=SCORES, there=None):
    there = torch.ones_like(scores, dtype=torch.bool) if there is None else there
    return [kept.nonzero().flatten().tolist() for kept in AMOUNTS[amount](scores, there, number)]


@pytest.mark.parametrize(
    "amount, number, expected",
    [
        ("keep", 0.5, [[1, 3, 4], [0, 1, 2]]),  # ceil(2.5), equal ones in their order
        ("keep", 0.4, [[1, 3], [0, 1]]),
        ("keep", 1.0, [[0, 1, 2, 3, 4]] * 2),
        ("top", 1, [[1], [0]]),
        ("top", 9, [[0, 1, 2, 3, 4]] * 2),
        ("mass", 0.59, [[1, 3], [0]]),  # 0.4 + 0.3, and 0.6 alone
        ("mass", 0.95, [[0, 1, 3, 4], [0, 1, 2, 3, 4]]),
        ("samples", 2, [[1, 4], [0, 3]]),  # 0.25 and 0.75 on 0, 0.1, 0.3, 0.6, 1 and 0.1, 0.2, 0.3, 0.4, 1
        ("samples", 100, [[0, 1, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_amounts_by_hand(amount, number, expected):
    assert stays(amount, number) == expected


@pytest.mark.parametrize("amount, number", [("keep", 0.5), ("top", 2), ("mass", 0.8), ("samples", 3)])
def test_what_is_gone_does_not_count(amount, number):
    scores, there = torch.rand(6, 12), torch.rand(6, 12) < 0.6
    for image, kept in enumerate(stays(amount, number, scores, there)):
        left = there[image].nonzero().flatten()
        (alone,) = stays(amount, number, scores[image, left].unsqueeze(0))
        assert kept == left[alone].tolist()


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_rate_keeps_as_many_as_the_published_ceiling(rate):
    for count in range(1, 200):
        kept = AMOUNTS["keep"](torch.rand(1, count), torch.ones(1, count, dtype=torch.bool), rate).sum()
        assert kept == math.ceil(round(rate * count, 9))  # 0.1 * 30 is 3.0000000000000004


def test_scores_by_hand():
    tokens, state = torch.randn(2, 9, 32), TokenState(torch.arange(9).ne(4).expand(2, -1))
    rest = [1, 2, 3, 5, 6, 7, 8]
    mean = tokens[:, rest].mean(1)
    assert_close(patch_mean(tokens, state, slice(0, 1)), mean)
    contrast = SCORERS["contrast"](CONFIG).score(tokens, state)
    assert_close(contrast, 1 - torch.cosine_similarity(tokens, mean.unsqueeze(1), dim=-1))
    assert_close(SCORERS["norm"](CONFIG).score(tokens, state), tokens.norm(dim=-1))
    noted = state._replace(attention=torch.rand(2, 9), values=torch.rand(2, 9))
    assert torch.equal(SCORERS["cls_attention"](CONFIG).score(tokens, noted), noted.attention)
    by_value = SCORERS["cls_attention_value"](CONFIG).score(tokens, noted)
    assert torch.equal(by_value, noted.attention * noted.values)
    nothing = noted._replace(attention=torch.zeros(2, 9))
    assert (SCORERS["cls_attention"](CONFIG).score(tokens, nothing) == 1).all()  # of images that skipped the layer


def test_the_predictor_reads_the_token_and_the_mean_of_those_that_are_there():
    gate = build_gate("token", CONFIG, {"score": "predictor", "keep": 0.5})
    torch.nn.init.normal_(gate.score.weight)
    tokens, state = torch.randn(1, 9, 32), TokenState(torch.arange(9).ne(4).expand(1, -1))
    before = gate.logits(tokens, state)
    for changed, moves in ((4, False), (0, False), (2, True)):
        other = tokens.clone()
        other[:, changed] += 1.0
        after = gate.logits(other, state)
        untouched = [place for place in range(9) if place != changed]
        assert torch.equal(after[:, untouched], before[:, untouched]) != moves
        assert not torch.equal(after[:, changed], before[:, changed])
    assert sum(p.numel() for p in gate.parameters()) == 32 * 32 + 32 + 32 * 16 + 16 + 16 * 8 + 8 + 8 + 1
    assert gate.macs(9, 8) == 8 * (32 * 32 + 32 * 16 + 16 * 8 + 8)


class Peak(Scorer):
    """The largest channel of a token."""

    def score(self, tokens, state):
        return tokens.amax(-1)


@pytest.mark.parametrize(
    "options", [{"keep": 0.5, "rest": "fuse"}, {"threshold": 0.5, "rest": "merge"}, {"mass": 0.6}]
)
def test_a_scorer_from_outside_is_as_good_as_any(tiny_vit, tmp_path, options):
    register_scorer("peak", Peak)
    model = gated(tiny_vit(3), [{"gate": "token", "score": "peak", **options}])
    for gate in model.learned_gates():
        torch.nn.init.constant_(gate.score.bias, -32.0)
    masked, packed = (
        run(model, layout, images(3, generator=torch.Generator().manual_seed(2))) for layout in ("masked", "packed")
    )
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost) and packed.cost.mean() < 0.99
    model.save_pretrained(tmp_path)
    DynViTForImageClassification.from_pretrained(tmp_path)
    SCORERS.pop("peak")
    with pytest.raises(ValueError, match="score of a token gate must be one of .*'cls_attention'.*, got 'peak'"):
        DynViTForImageClassification.from_pretrained(tmp_path)


def test_what_cannot_be_a_scorer_is_refused_by_name():
    with pytest.raises(ValueError, match="scorer 'linear' must be a subclass of Scorer"):
        register_scorer("linear", torch.nn.Linear)
    with pytest.raises(ValueError, match="there is a scorer 'norm' already: NormScorer"):
        register_scorer("norm", Peak)
