"""What a forward is charged for and accepts: gates that were asked, and each patch once."""

import pytest
import torch
from models import GATE_SETS, gated, images, random_decisions, run
from torch.testing import assert_close

from hf_dynvit.model.cost import dense_macs
from hf_dynvit.model.gate import Exploration


LAYERS = 3


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("name", ["block", "block upfront", "patch on block", "all", "patch merged"])
def test_gates_before_the_curriculum_are_not_charged(tiny_vit, name, layout):
    model = gated(tiny_vit(LAYERS), GATE_SETS[name])
    pixel_values = images(3)

    def cost(from_layer, gating="act"):
        return run(model, layout, pixel_values, gating=gating, exploration=Exploration(from_layer=from_layer)).cost

    assert torch.equal(cost(LAYERS), torch.ones(3)) and torch.equal(cost(0, "open"), torch.ones(3))
    last = sum(gate.macs(17) for gate in model.gates[-1].values())
    for layer in model.gates:  # everything is kept: what is left of the cost are the gates
        for gate in layer.values():
            torch.nn.init.constant_(gate.score.bias, 1e4)
    assert_close(cost(LAYERS - 1), torch.ones(3) * (1 + last / dense_macs(model.config, 17, 5)))


def test_gates_that_score_given_decisions_are_charged_where_a_mask_would_stop_them(tiny_vit):
    model = gated(tiny_vit(2), GATE_SETS["block"])
    decisions = [decision._replace(attention_tokens=None, mlp_tokens=None) for decision in random_decisions(3, 2)]
    free = run(model, "masked", images(3), decisions=decisions).cost
    model.config.layer_mask = [[False, False], [True, True]]
    assert torch.equal(run(model, "masked", images(3), decisions=decisions).cost, free)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("patches", [[3, 5, 3], [[0, 1, 2], [4, 9, 9]]])
def test_a_patch_that_is_given_twice_is_refused(tiny_vit, patches, merge):
    model = gated(tiny_vit(), GATE_SETS["all"])
    twice = 3 if patches[0] == 3 else 9
    with pytest.raises(ValueError, match=f"each patch must be given at most once, got {twice} twice"):
        model(images(2), patches=torch.tensor(patches), merge_patches=merge)
