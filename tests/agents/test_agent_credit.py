"""Claims about what agentvit-plus learns from: pairs of choices, the saliency of patches, or nothing."""

import pytest
import torch
from agent_models import agent_trainer, build
from models import images
from torch.testing import assert_close

from hf_dynvit.agents.agentvit_plus import SubsetPolicy, patch_saliency
from hf_dynvit.agents.base import Moment
from hf_dynvit.agents.features import pixel_novelty
from hf_dynvit.objectives.options import parse_options


WEIGHTS = torch.tensor([1.0, 8.0, *[1.0] * 4, 4.0, *[1.0] * 4, 2.0, *[1.0] * 4])  # of patches 1, 6 and 11 more


class Weighted(torch.nn.Module):
    """A made-up classifier of two classes: one logit is the sum of its patches' brightness, each by its own weight."""

    def __init__(self, model):
        super().__init__()
        self.vit, self.config, self.scale = model.vit, model.config, torch.nn.Parameter(torch.ones(()))

    def forward(self, pixel_values, output_hidden_states):
        tokens = pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).mean((1, 4)).flatten(1).unsqueeze(-1)
        tokens = torch.nn.functional.pad(tokens, (0, 0, 1, 0))  # a [CLS] that nothing depends on
        logit = self.scale * (tokens[:, 1:, 0] * WEIGHTS).sum(1)
        logits = torch.stack((logit, torch.zeros_like(logit)), 1)
        return type("Outputs", (), {"hidden_states": {0: tokens}, "logits": logits})


def learned(agent, batches, size=16):
    for batch in range(batches):
        pixel_values = 0.1 * images(size)
        agent.choose(pixel_values, Moment(batch))
        agent.observe(pixel_values, None, None, Moment(batch))


def test_saliency_by_hand(tiny_vit):
    model = Weighted(build(tiny_vit(), "agentvit-plus").model)
    log = WEIGHTS.log()
    assert_close(patch_saliency(model, images(3)), (log - log.mean()).expand(3, -1))


def test_saliency_is_the_gradient_of_the_models_prediction_and_leaves_no_trace(tiny_vit):
    model, pixel_values = build(tiny_vit(), "agentvit-plus").model.eval(), images(2)
    found = patch_saliency(model, pixel_values)
    assert found.shape == (2, 16) and not found.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    # By the chain rule, from the pixels: the patch embedding is linear, so that its weights undo the way from tokens to pixels.
    given = pixel_values.clone().requires_grad_()
    model(given).logits.log_softmax(-1).amax(-1).sum().backward()
    pixels = torch.nn.functional.unfold(given.grad, 8, stride=8).mT  # (B, n, pixels of a patch)
    weight = model.vit.embeddings.patch_embeddings.projection.weight.detach().flatten(1)
    norm = (pixels @ torch.linalg.pinv(weight)).norm(dim=-1).log()
    assert_close(found, norm - norm.mean(1, keepdim=True), rtol=1e-3, atol=1e-3)
    assert_close(patch_saliency(model.requires_grad_(False), pixel_values), found)  # a frozen backbone, too


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_labels_are_not_needed(tiny_vit, problem):
    agent = build(tiny_vit(), "agentvit-plus", 6, credit="saliency", learn_every=1)
    agent.model.config.problem_type = problem
    before = agent.scorer.score.weight.clone()
    learned(agent, 2)
    assert not torch.equal(agent.scorer.score.weight, before)


def test_the_scorer_learns_the_order_of_saliency(tiny_vit):
    agent = build(tiny_vit(), "agentvit-plus", 6, credit="saliency", learn_every=1, learning_rate=1e-2, novelty=0.0)
    agent.model = Weighted(agent.model)
    learned(agent, 100)
    pixel_values = 0.1 * images(32)
    scores = agent.logits(agent.features(pixel_values)).mean(0)
    assert scores.topk(3).indices.tolist() == [1, 6, 11]
    assert agent.logged["explained"][-1] > 0.7 and "reward" not in agent.logged


def test_it_learns_in_every_so_many_batches(tiny_vit):
    agent = build(tiny_vit(), "agentvit-plus", 6, credit="saliency", learn_every=3)
    agent.model = Weighted(agent.model)
    learned(agent, 7)
    assert len(agent.logged["explained"]) == 3  # batches 0, 3 and 6


def test_the_unlearned_twin_runs_nothing_and_stays_with_novelty(tiny_vit):
    agent = build(tiny_vit(), "agentvit-plus", 6, credit="none", learn_every=1)
    before = {name: value.clone() for name, value in agent.scorer.state_dict().items()}
    agent.model.forward = None  # calling it would be an error
    learned(agent, 3)
    assert all(torch.equal(value, before[name]) for name, value in agent.scorer.state_dict().items())
    pixel_values = images(4)
    newest = pixel_novelty(pixel_values, agent.grid).topk(6, 1).indices.sort(1).values
    assert torch.equal(agent.choose(pixel_values, Moment(), explore=False), newest) and not agent.logged


def test_the_twin_draws_as_the_learned_one_begins(tiny_vit):
    pixel_values = images(4)
    drawn = [
        build(tiny_vit(), "agentvit-plus", 6, credit=credit).choose(pixel_values, Moment())
        for credit in ("pairs", "none")
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("credit", ["saliency", "none"])
def test_it_trains_in_the_trainer(tiny_vit, tmp_path, credit):
    options = {"credit": credit, "learn_every": 1}
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit-plus", agent_options=options, max_steps=4, logging_steps=1)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "agent/explained" in entry]
    assert bool(logs) == (credit == "saliency")


def test_another_credit_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \('pairs', 'saliency', 'none'\), got 'gradient'"):
        parse_options("agent 'x'", SubsetPolicy.Options, {"credit": "gradient"})


def test_small_gradients_do_not_vanish_in_16_bits(tiny_vit):
    model, pixel_values = build(tiny_vit(), "agentvit-plus").model.eval(), images(4)
    with torch.no_grad():
        model.classifier.bias[0] += 12.0  # so sure that the gradient is about 1e-5 of what it was
    exact = patch_saliency(model, pixel_values)
    with torch.autocast("cpu", dtype=torch.float16):
        halved = patch_saliency(model, pixel_values)
    assert_close(halved, exact, rtol=0, atol=0.1)
    assert exact.std() > 0.05


@pytest.mark.parametrize("given", [{"reward": "loss"}, {"entropy_weight": 0.1}])
def test_what_pairs_alone_are_taught_by_is_refused_with_another_credit(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} of agentvit-plus are of credit 'pairs', got credit 'none'"):
        parse_options("agent 'x'", SubsetPolicy.Options, {"credit": "none", **given})
