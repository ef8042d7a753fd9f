"""What is reported of a compacted stream is what was computed, also where one image drops tokens and another none."""

import torch
from models import gated
from torch.testing import assert_close

from hf_dynvit.model.compaction import in_full
from hf_dynvit.model.decisions import LayerDecisions, Places, TokenState


def test_a_drop_that_one_image_does_not_make_is_counted_for_the_others(tiny_vit):
    model = gated(tiny_vit(3), [{"gate": "patch", "drop": True, "layers": [0, 1]}]).eval()
    first, second = model.gates[0]["attention_tokens"], model.gates[1]["attention_tokens"]

    first.forward = lambda tokens, *args: (torch.arange(17) <= 8).expand(2, -1)  # both images keep 8 of 16 patches
    drops = torch.tensor([[False], [True]])
    # The first image keeps all of them, the second two.
    second.forward = lambda tokens, *args: ~(drops & (torch.arange(tokens.shape[1]) > 2))
    outs = {}
    with torch.no_grad():
        for model.layout in ("masked", "packed"):
            outs[model.layout] = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    masked, packed = outs["masked"], outs["packed"]
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-5)
    assert packed.decisions[2].mlp_tokens.sum(1).tolist() == masked.decisions[2].mlp_tokens.sum(1).tolist() == [9, 3]
    assert torch.equal(packed.cost, masked.cost)


def test_into_of_a_stream_is_told_in_the_full_one_once():
    """`take_out` says it there already; a gate that merges and takes nothing out says it in its stream."""
    alive = torch.tensor([[True, False, True, True]])
    before = TokenState(places=Places(torch.tensor([[0, 2, 3]]), alive))
    short, full = torch.tensor([[0, 2, 2]]), torch.tensor([[0, 1, 3, 3]])
    for into in (short, full):
        assert in_full(LayerDecisions(into=into), before, before).into.tolist() == full.tolist()
