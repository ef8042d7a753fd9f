"""What each look of a cascade is worth by itself, and as many looks drawn at random."""

import pytest
import torch
from models import gated, images

from hf_dynvit.measure.looks import each_look, measure_looks


LOOKS = [{"budget": 0.52, "resolution": 24}, {"budget": 0.9, "weight": 3.0}]


@torch.no_grad()
def test_shares_costs_and_chance_are_those_of_the_looks(tiny_vit):
    model, x = gated(tiny_vit(), [{"gate": "merge", "distance": 4.0, "layers": [1]}], cascade=LOOKS).eval(), images(8)
    first, second = (model(x, look=look) for look in (0, 1))
    sure = first.logits.softmax(-1).amax(-1).sort().values
    model.config.budget_confidences, model.config.budget = [[0.5, 0.0], [0.9, (sure[1] + sure[2]).item() / 2]], 0.9
    both = (first.logits.softmax(-1) + 3 * second.logits.softmax(-1)).argmax(-1)
    labels = torch.cat([first.logits.argmax(-1)[:6], both[6:]])
    batches = [{"pixel_values": x[:5], "labels": labels[:5]}, {"pixel_values": x[5:], "labels": labels[5:]}]
    found = measure_looks(model, batches)
    assert found.shares == [0.75, 0.25]  # the two least sure
    accuracies = [(first.logits.argmax(-1) == labels).float().mean().item(), (both == labels).float().mean().item()]
    assert found.accuracy == pytest.approx(accuracies)
    assert found.at_random == pytest.approx(0.75 * accuracies[0] + 0.25 * accuracies[1])
    costs = [look.cost.mean().item() for look in (first, second)]
    assert found.cost == pytest.approx([costs[0], sum(costs)])
    model.config.budget_confidences, model.config.budget = (
        [[0.45, sure[0].item()], [0.9, sure[-1].item() * 1.01]],
        0.65,
    )
    for one in measure_looks(model, batches).at:
        out = model(x, budget=one.budget)
        assert one.accuracy == pytest.approx((out.logits.argmax(-1) == labels).float().mean().item())
        assert one.cost == pytest.approx(out.cost.mean().item(), abs=1e-6)
        again = (out.looks == 2).float().mean().item()
        assert one.at_random == pytest.approx((1 - again) * accuracies[0] + again * accuracies[1])
        assert one.cost_at_random == pytest.approx(costs[0] + again * costs[1])
    each = each_look(model, [x[:5], x[5:]])
    assert torch.equal(each.read[1], both) and each.sure.shape == each.spent.shape == (2, 8)
