"""Values of the objectives that a wrong formula would change: computed by hand, or held by what must not move."""

import pytest
import torch
from models import images
from trainers import build_trainer

from hf_dynvit import LayerDecisions
from hf_dynvit.model.gate import LearnedGate
from hf_dynvit.objectives import Step
from hf_dynvit.objectives.policy_gradient import layer_returns, outcome, terminal_reward
from hf_dynvit.objectives.usage import usage_loss


BLOCKS = [{"gate": "block", "value_width": 8}]
IMAGES = 32


# ---------------------------------------------------------------------------------------------- usage


def bits(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_usage_of_sub_layers_is_an_absolute_distance():
    decisions = [LayerDecisions(sublayers=bits([1, 1], [1, 0]))]  # 3 of 4
    assert usage_loss(decisions, sublayer_target=0.5).item() == pytest.approx(0.25)
    assert usage_loss(decisions, sublayer_target=0.95).item() == pytest.approx(0.2)


def test_usage_of_heads_is_an_absolute_distance():
    decisions = [LayerDecisions(heads=bits([1, 1, 1, 0])), LayerDecisions(heads=bits([1, 0, 0, 0]))]  # 4 of 8
    assert usage_loss(decisions, head_target=0.9).item() == pytest.approx(0.4)
    assert usage_loss(decisions, head_target=0.2).item() == pytest.approx(0.3)


def test_usage_of_tokens_is_a_squared_distance():
    decisions = [LayerDecisions(attention_tokens=bits([1, 1, 1, 1, 0]))]  # 4 of 5
    assert usage_loss(decisions, token_target=0.5).item() == pytest.approx(0.09)
    of_mlp = [LayerDecisions(mlp_tokens=one.attention_tokens) for one in decisions]
    assert usage_loss(of_mlp, token_target=0.5).item() == pytest.approx(0.09)
    of_block = [LayerDecisions(one.attention_tokens, one.attention_tokens) for one in decisions]
    assert usage_loss(of_block, token_target=0.5).item() == pytest.approx(0.09)
    mixed = [one._replace(mlp_tokens=torch.zeros_like(one.attention_tokens)) for one in decisions]
    assert usage_loss(mixed, token_target=0.4).item() == pytest.approx(0.0, abs=1e-12)  # of 0.8 and of 0


def test_heads_of_skipped_blocks_are_not_counted():
    heads = bits([1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0])
    sublayers = bits([0, 0], [0, 1], [1, 0])  # the first image runs nothing: 1 of 8 heads are in use
    loss = usage_loss([LayerDecisions(heads=heads, sublayers=sublayers)], head_target=0.5, sublayer_target=2 / 6)
    assert loss.item() == pytest.approx(0.5 - 1 / 8, abs=1e-6)


# ---------------------------------------------------------------------------------------------- policy


def trainer_of(tiny_vit, folder, layers=3, gates=BLOCKS, **options):
    """A trainer of policies whose scores are random, so that images differ in what they run."""
    options = {"objective": "reinforce", "calibration_images": 0, "budget_ramp": 0.0, "entropy_weight": 0.0} | options
    trainer = build_trainer(lambda **fields: tiny_vit(layers, **fields), folder, gates=gates, **options)
    gated_ = [module for module in trainer.model.modules() if isinstance(module, LearnedGate)]
    for gate in gated_:
        torch.nn.init.normal_(gate.score.weight, std=0.5)
        torch.nn.init.zeros_(gate.score.bias)
    return trainer


def batch_of(model):
    """Images whose labels the dense model gets right half of the time."""
    pixel_values = images(IMAGES, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model(pixel_values, gating="open").logits.argmax(1)
    labels[::2] = (labels[::2] + 1) % 3
    return {"pixel_values": pixel_values, "labels": labels}


def returns_of(trainer, inputs, outputs):
    """The returns-to-go (L, B) of a price that does not move, from what each layer spent."""
    objective, options = trainer.objective, trainer.objective.options
    spent = objective._spent(outputs)
    earned = outcome(outputs.logits, inputs["labels"], options.reward)
    return layer_returns(terminal_reward(earned, spent.sum(0), options.price), spent, options.price)


def policy_loss_of(trainer, inputs, outputs):
    return trainer.objective.loss(trainer.model, inputs, outputs, trainer.schedule.step())


def score_gradients(trainer, loss):
    parameters = [
        p for module in trainer.model.modules() if isinstance(module, LearnedGate) for p in module.score.parameters()
    ]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def test_a_value_baseline_that_is_right_leaves_the_policy_nothing_to_learn(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, baseline="value", price=0.5, price_gain=0.0)
    inputs, gradients = batch_of(trainer.model), {}
    for right in (True, False):
        torch.manual_seed(0)
        outputs = trainer.model(**inputs, gating="act")
        returns = returns_of(trainer, inputs, outputs)
        assert returns.std(1).min() > 0.1
        values = returns if right else returns.roll(1, 1)
        outputs.decisions = [d._replace(value=v) for d, v in zip(outputs.decisions, values, strict=True)]
        gradients[right] = score_gradients(trainer, policy_loss_of(trainer, inputs, outputs)).abs().max()
    assert gradients[True] < 1e-5 and gradients[False] > 1e-2


def test_an_image_that_earns_what_the_greedy_policy_earns_teaches_nothing(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, baseline="self-critical", price=0.0, price_gain=0.0)
    model = trainer.model.train()
    inputs = batch_of(model)
    with torch.no_grad():
        greedy = model(**inputs, gating="threshold").decisions
    other = [d._replace(sublayers=d.sublayers ^ (torch.arange(IMAGES) % 3 == 0)[:, None]) for d in greedy]
    gradients = []
    for decisions in (greedy, other):
        outputs = model(**inputs, decisions=decisions, gating="act")
        assert 0.1 < outcome(outputs.logits, inputs["labels"], "correct").mean() < 0.9
        gradients.append(score_gradients(trainer, policy_loss_of(trainer, inputs, outputs)).abs().max())
    assert gradients[0] < 1e-6 and gradients[1] > 1e-2


def test_entropy_is_raised(tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_dynvit.objectives.reinforce.policy_loss", lambda log_probs, advantage: 0.0)
    options = {"entropy_weight": 1.0, "value_weight": 0.0, "probability_bound": 1.0}
    trainer = trainer_of(tiny_vit, tmp_path, **options)
    inputs = batch_of(trainer.model)
    outputs = trainer.model(**inputs, gating="act")
    entropy = torch.stack([d.entropy for d in outputs.decisions]).sum(0).mean()
    loss = policy_loss_of(trainer, inputs, outputs)
    assert loss.item() == pytest.approx(-entropy.item(), abs=1e-6) and entropy > 0.1
    # Descent on the loss moves keep probabilities towards one half.
    gates = [module for module in trainer.model.modules() if isinstance(module, LearnedGate)]
    with torch.no_grad():
        for gate in gates:
            gate.score.weight.zero_()
            gate.score.bias.fill_(2.0)
    loss = policy_loss_of(trainer, inputs, trainer.model(**inputs, gating="act"))
    for gradient in torch.autograd.grad(loss, [gate.score.bias for gate in gates]):
        assert gradient.item() > 0.01


def test_a_curriculum_opens_layers_from_the_last_to_the_first(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, layers=5, curriculum=0.5)
    steps = [Step(progress, budget=0.5, noise=1.0) for progress in (0.0, 0.1, 0.25, 0.4, 0.5, 1.0)]
    assert [trainer.objective.exploration(step).from_layer for step in steps] == [4, 3, 2, 0, 0, 0]
    trainer.objective.options.curriculum = 0.0
    assert trainer.objective.exploration(steps[0]).from_layer == 0


def test_in_training_a_curriculum_keeps_early_layers_open_at_first(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, layers=3, curriculum=0.5, max_steps=4, gate_learning_rate=0.0)
    acting = []
    original = trainer.objective.loss
    trainer.objective.loss = lambda model, inputs, outputs, step: (
        acting.append([d.log_prob is not None for d in outputs.decisions]) or original(model, inputs, outputs, step)
    )
    trainer.train()
    assert acting == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]


@pytest.mark.parametrize(("bound", "low", "high"), [(0.75, 0.15, 0.35), (1.0, 0.0, 0.0)])
def test_policies_that_are_sure_are_drawn_against_as_often_as_the_bound_says(tiny_vit, tmp_path, bound, low, high):
    trainer = trainer_of(
        tiny_vit, tmp_path, probability_bound=bound, max_steps=4, gate_learning_rate=0.0, curriculum=0.0
    )
    for gate in [module for module in trainer.model.modules() if isinstance(module, LearnedGate)]:
        torch.nn.init.zeros_(gate.score.weight)
        torch.nn.init.constant_(gate.score.bias, 30.0)
    kept = []
    original = trainer.objective.loss
    trainer.objective.loss = lambda model, inputs, outputs, step: (
        kept.extend(d.sublayers.float().mean() for d in outputs.decisions) or original(model, inputs, outputs, step)
    )
    trainer.train()
    assert low <= 1 - torch.stack(kept).mean().item() <= high
