"""Claims about patch agents: the published agent to the letter, credit where it is due, and exact numbers of patches."""

import math

import pytest
import torch
from models import GATE_SETS, gated, images, run
from test_trainer import assert_same, build_trainer, weights
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hf_dynvit import DynViTForImageClassification, DynViTTrainingArguments
from hf_dynvit.agent import FILE, PatchAgent
from hf_dynvit.agent_base import Moment
from hf_dynvit.agent_dqn import DQNAgent
from hf_dynvit.agent_math import (
    above_mean,
    agentvit_reward,
    draw_order,
    epsilon_at,
    kept_count,
    order_log_prob,
    pair_loss,
    patch_reward,
    polyak,
    q_target,
)
from hf_dynvit.agent_policy import SubsetPolicy
from hf_dynvit.agent_published import AgentViTAgent, QNetwork
from hf_dynvit.agent_replay import Replay, Transition
from hf_dynvit.agent_signal import attention_signal, input_tokens
from hf_dynvit.agents import AGENTS
from hf_dynvit.cost import dense_macs


LEARNING = ("agentvit", "agentvit-dqn", "agentvit-plus")
FAST = {"learn_every": 2, "sample": 2, "capacity": 3, "epsilon_decay": 4}


def build(vit, name, desired=8, seed=0, **options):
    """An agent alone, without a trainer."""
    kind, defaults = AGENTS[name]
    model = DynViTForImageClassification.from_vit(vit)
    return kind(model, desired, kind.Options(**{**defaults, **options}), torch.device("cpu"), seed)


def agent_trainer(tiny_vit, folder, agent, desired=8, **options):
    if agent in LEARNING and "agent_options" not in options:
        options["agent_options"] = FAST if agent != "agentvit-plus" else {"learn_every": 2}
    return build_trainer(tiny_vit, folder, gates=None, budget=1.0, agent=agent, n_patch_desired=desired, **options)


# ---------------------------------------------------------------------------------------------- the forward


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("per_image", [False, True])
def test_a_forward_on_some_patches_is_that_of_the_others_never_there(tiny_vit, layout, per_image):
    vit = tiny_vit(3)
    model, pixel_values = DynViTForImageClassification.from_vit(vit), images(3)
    patches = torch.tensor([1, 4, 5, 15])
    patches = torch.stack([patches, patches - 1, torch.tensor([7, 3, 9, 0])]) if per_image else patches
    out = run(model, layout, pixel_values, patches=patches)
    with torch.no_grad():
        tokens = vit.vit.embeddings(pixel_values)
        for image in range(3):
            kept = patches[image] if per_image else patches
            x = torch.cat((tokens[image, :1], tokens[image, 1:][kept]))[None]  # positions stay those of the patches
            for layer in vit.vit.layers:
                x = layer(x)
            assert_close(out.logits[image], vit.classifier(vit.vit.layernorm(x[:, 0]))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_on_all_patches_the_logits_are_those_of_the_vit(tiny_vit, layout):
    vit, pixel_values = tiny_vit(), images(2)
    model = DynViTForImageClassification.from_vit(vit)
    out = run(model, layout, pixel_values, patches=torch.arange(16))
    assert_close(out.logits, vit(pixel_values).logits, rtol=0, atol=1e-5)
    assert out.cost.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", GATE_SETS)
def test_layouts_agree_on_some_patches_with_every_gate(tiny_vit, name):
    model, pixel_values = gated(tiny_vit(), GATE_SETS[name]), images(4)
    patches = torch.rand(4, 16).argsort(1)[:, :7]
    one, other = (run(model, layout, pixel_values, patches=patches) for layout in ("masked", "packed"))
    assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
    assert_close(one.cost, other.cost)


@pytest.mark.usefixtures("counted_attention")
def test_the_cost_on_some_patches_is_what_runs_over_the_full_dense_model(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(3))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(images(2), patches=torch.arange(5))
    assert counter.get_total_flops() / 2 == round(out.cost.sum().item() * dense_macs(model.config, 17, 5))
    assert 0.2 < out.cost[0] < 0.45


def test_gradients_pass_the_removal_in_both_layouts(tiny_vit):
    model, pixel_values, patches = DynViTForImageClassification.from_vit(tiny_vit()), images(2), torch.arange(6)
    gradients = []
    for model.layout in ("masked", "packed"):
        loss = model(pixel_values, labels=torch.tensor([0, 1]), patches=patches).loss
        gradients.append(torch.autograd.grad(loss, model.vit.embeddings.position_embeddings)[0])
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0][0, 1:7].any(-1).all() and not gradients[0][0, 7:].any()


@pytest.mark.parametrize(
    ("patches", "error"),
    [
        (torch.ones(16, dtype=torch.bool), ValueError),
        (torch.arange(17), ValueError),
        (torch.arange(0), ValueError),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError),
        ([0, 1], ValueError),
        (torch.tensor([16]), IndexError),
        (torch.tensor([-1]), IndexError),
    ],
)
def test_patches_that_make_no_sense_are_refused(tiny_vit, patches, error):
    model = DynViTForImageClassification.from_vit(tiny_vit())
    with pytest.raises(error, match="patches must be"):
        model(images(2), patches=patches)


# ---------------------------------------------------------------------------------------------- the published agent


def test_the_state_is_the_first_attention_averaged_over_channels(tiny_vit):
    vit, pixel_values = tiny_vit(), images(3)
    captured = []
    vit.vit.layers[0].attention.register_forward_hook(lambda _, __, out: captured.append(out[0]))
    vit(pixel_values)
    state = attention_signal(vit.vit.train(), pixel_values)
    assert_close(state, captured[0][:, 1:].mean(-1).detach(), rtol=1e-4, atol=1e-6)
    assert state.shape == (3, 16) and not state.requires_grad
    assert_close(input_tokens(vit.vit, pixel_values), vit.vit.eval().embeddings(pixel_values).detach())


def test_a_patch_is_kept_where_its_score_reaches_the_mean():
    assert above_mean(torch.tensor([1.0, 2.0, 3.0])).tolist() == [False, True, True]
    for patches in (3, 49, 196):
        assert above_mean(torch.full((patches,), 0.1)).all()


@pytest.mark.parametrize(("patches", "mean", "deviation"), [(64, 32.0, 2.31), (49, 24.5, 2.02), (196, 98.0, 4.04)])
def test_random_scores_keep_half_of_the_patches(patches, mean, deviation):
    counts = torch.stack([above_mean(torch.rand(patches)).sum() for _ in range(2000)]).float()
    assert counts.mean().item() == pytest.approx(mean, abs=0.3)
    assert counts.std().item() == pytest.approx(deviation, abs=0.2)


@pytest.mark.parametrize("desired", [2, 8, 15])
def test_the_published_agent_keeps_half_whatever_the_target(tiny_vit, desired):
    agent = build(tiny_vit(), "agentvit", desired)
    counts = [len(agent.choose(images(2), Moment(batch=0))) for _ in range(200)]
    assert sum(counts) / 200 == pytest.approx(8.0, abs=0.4) and len(set(counts)) > 3


def test_the_choice_is_one_per_batch_by_the_mean_of_the_q_values(tiny_vit):
    agent, pixel_values = build(tiny_vit(), "agentvit", epsilon_start=0.0, epsilon_end=0.0), images(5)
    q = agent.network(agent.state(pixel_values)).mean(0)
    assert_close(agent.choose(pixel_values, Moment()), (q >= q.mean()).nonzero().squeeze(1))


def test_rewards_by_hand():
    assert patch_reward(34, 64, 30) == 0.0  # ideal: 34 dropped
    assert patch_reward(17, 64, 30) == pytest.approx(-0.5) and patch_reward(51, 64, 30) == pytest.approx(-0.5)
    assert patch_reward(0, 16, 16) == 0.0 and patch_reward(3, 16, 16) == -3.0
    assert agentvit_reward(2.3, 2.3, 34, 64, 30) == pytest.approx(1.0)
    assert agentvit_reward(2.3, 1.15, 17, 64, 30) == pytest.approx(2.0 - 10.0)
    assert agentvit_reward(2.0, 1.0, 32, 64, 30, loss_weight=0.5, time_weight=1.0) == pytest.approx(1 - 2 / 34)


def test_the_q_network_has_the_published_size():
    assert sum(p.numel() for p in QNetwork(64, 64).parameters()) == 345_408


def test_epsilon():
    assert epsilon_at(0) == 1.0 and epsilon_at(39_100) == pytest.approx(0.150, abs=5e-4)
    assert sum(map(epsilon_at, range(39_100))) / 39_100 == pytest.approx(0.445, abs=1e-3)
    assert epsilon_at(20_000) == pytest.approx(0.01 + 0.99 / math.e)


def test_the_target_is_reward_plus_discounted_q_of_every_output(tiny_vit):
    agent = build(tiny_vit(), "agentvit", gamma=0.5)
    assert q_target(torch.tensor([1.0, -2.0]), torch.ones(2, 3), 0.5).tolist() == [[1.5] * 3, [-1.5] * 3]
    states, keep = torch.randn(2, 4, 16), torch.rand(16) < 0.5
    reward = torch.full((4,), 3.0)
    loss = agent.learning_loss(Transition(*states, reward))
    wanted = 3.0 + 0.5 * agent.target(states[1])
    assert_close(loss, torch.nn.functional.smooth_l1_loss(agent.network(states[0]), wanted))
    assert torch.equal(loss, agent.learning_loss(Transition(*states, reward, keep)))  # it knows no action


def test_q_learning_by_the_book_credits_the_actions_taken_alone(tiny_vit):
    agent = build(tiny_vit(), "agentvit-dqn")
    states, keep = torch.randn(2, 4, 16), torch.rand(4, 16) < 0.5
    q = agent._q(agent.network, states[0]).detach().requires_grad_()
    agent._q = lambda network, state: q if network is agent.network else torch.zeros_like(q)
    agent.learning_loss(Transition(*states, torch.full((4,), 50.0), keep)).backward()
    assert q.grad[..., 1].ne(0).equal(keep) and q.grad[..., 0].ne(0).equal(~keep)


def test_q_learning_by_the_book_keeps_where_keeping_is_better(tiny_vit):
    agent = build(tiny_vit(), "agentvit-dqn")
    agent._q = lambda network, state: torch.stack((torch.zeros(3, 4), state), -1)
    state = torch.tensor([[1.0, -1.0, 0.0, -2.0]]).expand(3, -1)
    assert agent._greedy(state).tolist() == [True, False, True, False]
    assert agent._greedy(state - 5).tolist() == [True, False, False, False]  # one at least


def test_replay_evicts_at_random_and_draws_without_repeats():
    replay = Replay(64, 8, torch.Generator().manual_seed(0))
    for number in range(200):
        rows = 3 + number % 2
        replay.push(Transition(torch.full((rows, 4), float(number)), torch.zeros(rows, 4), torch.tensor(1.0 * number)))
    assert len(replay) == 64
    numbers = [int(t.reward) for t in replay.transitions]
    assert numbers[-1] == 199 and numbers != list(range(136, 200)) and min(numbers) < 136
    batch = replay.sample()
    assert len(set(batch.reward.tolist())) == 8 and 24 <= len(batch.reward) <= 32 and batch.keep is None
    assert torch.equal(batch.reward, batch.state[:, 0])


def test_polyak_moves_a_tenth_of_the_way():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = 0.9 * one.weight + 0.1 * other.weight
    polyak(one, other, 0.1)
    assert_close(one.weight, wanted)


def test_the_schedule_of_the_published_training(tiny_vit, monkeypatch):
    agent = build(tiny_vit(), "agentvit", hidden=8, hidden2=8)
    pushed, updated = [], []
    push = agent.replay.push
    agent.state = lambda pixel_values: torch.zeros(1, 16)
    agent.replay.push = lambda transition: pushed.append(push(transition))
    monkeypatch.setattr("hf_dynvit.agent_published.polyak", lambda *networks: updated.append(networks))
    outputs = type("Outputs", (), {"loss": torch.tensor(1.0)})
    for epoch in range(100):
        for number in (49, 50, *range(100, 391, 50), 391):  # all others are like 49 and 391
            moment = Moment(epoch * 391 + number - 1, number, epoch)
            agent.choose(None, moment)
            agent.observe(None, None, outputs, moment)
            agent.after_step()
    assert (len(pushed), agent.learn_steps, len(updated)) == (693, 686, 343)
    assert len(agent.replay) == 64


def test_the_evaluation_choice_of_the_published_agent_depends_on_the_batch_and_ours_does_not(tiny_vit):
    pixel_values = images(6)
    published = build(tiny_vit(), "agentvit")
    together = published.choose(pixel_values, Moment(), explore=False)
    alone = [published.choose(image[None], Moment(), explore=False) for image in pixel_values]
    assert any(not torch.equal(together, choice) for choice in alone)
    ours = build(tiny_vit(), "agentvit-plus")
    torch.nn.init.normal_(ours.scorer.score.weight)
    together = ours.choose(pixel_values, Moment(), explore=False)
    alone = torch.cat([ours.choose(image[None], Moment(), explore=False) for image in pixel_values])
    assert torch.equal(together, alone) and len(together.unique(dim=0)) > 1


# ---------------------------------------------------------------------------------------------- ours, and rules


def test_the_probability_of_an_order_is_that_of_drawing_without_replacement():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64)
    p = logits.softmax(1)[0]
    log_prob = order_log_prob(logits, torch.tensor([[2, 0]]))
    assert log_prob.exp().item() == pytest.approx((p[2] * p[0] / (1 - p[2])).item())
    orders = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    orders = orders[orders[:, 0] != orders[:, 1]]
    assert order_log_prob(logits.expand(12, -1), orders).exp().sum().item() == pytest.approx(1.0)
    drawn = draw_order(logits.float().expand(20_000, -1), 2, torch.Generator().manual_seed(0))
    share = (drawn == torch.tensor([2, 0])).all(1).float().mean().item()
    assert share == pytest.approx(log_prob.exp().item(), abs=0.01)


def test_the_expected_gradient_of_a_pair_is_that_of_the_expected_reward():
    logits = torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64, requires_grad=True)
    orders = [torch.tensor([[i, j]]) for i in range(3) for j in range(3) if i != j]
    log_probs = [order_log_prob(logits, order) for order in orders]
    rewards = [torch.tensor([float(order[0, 0] ** 2 + order[0, 1])]) for order in orders]
    exact = sum(lp.exp() * reward for lp, reward in zip(log_probs, rewards, strict=True)).sum()
    estimate = sum(
        -lp1.exp().detach() * lp2.exp().detach() * pair_loss(lp1, lp2, r1, r2)
        for lp1, r1 in zip(log_probs, rewards, strict=True)
        for lp2, r2 in zip(log_probs, rewards, strict=True)
    ).sum()
    assert_close(*(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (estimate, exact)))


@pytest.mark.parametrize("name", ["agentvit-plus", "random", "fixed", "center", "progressive"])
def test_exactly_the_wanted_patches_are_kept(tiny_vit, name):
    agent = build(tiny_vit(), name, desired=5)
    patches = agent.choose(images(4), Moment())
    assert patches.shape[-1] == 5 and (patches.sort().values.diff() > 0).all()
    assert patches.ndim == (1 if name in ("fixed", "center") else 2)


def test_rules(tiny_vit):
    center = build(tiny_vit(), "center", desired=4).choose(images(2), Moment())
    assert sorted(center.tolist()) == [5, 6, 9, 10]
    fixed = build(tiny_vit(), "fixed")
    assert torch.equal(fixed.choose(images(2), Moment()), fixed.choose(images(3), Moment(batch=7)))
    assert not torch.equal(
        fixed.choose(images(2), Moment()), build(tiny_vit(), "fixed", seed=1).choose(images(2), Moment())
    )
    random = build(tiny_vit(), "random").choose(images(2), Moment())
    assert not torch.equal(*(row.sort().values for row in random))


def test_the_number_of_patches_returns_to_all():
    counts = [kept_count(progress, 4, 16, 0.5) for progress in (0.0, 0.3, 0.5, 0.75, 1.0)]
    assert counts == [4, 4, 4, 10, 16]
    assert kept_count(0.99, 4, 16, 0.0) == 4 and kept_count(0.5, 4, 16, 1.0) == 10


class Informative(torch.nn.Module):
    """A made-up classifier whose label's probability is the share of patches 1, 6 and 11 that it is given."""

    def __init__(self, model):
        super().__init__()
        self.vit, self.config = model.vit, model.config

    def forward(self, pixel_values, patches, merge_patches=False):
        patches = patches.expand(len(pixel_values), -1)
        share = torch.isin(patches, torch.tensor([1, 6, 11])).float().sum(1) / 3
        p = 0.1 + 0.8 * share
        return type("Outputs", (), {"logits": torch.stack((p, 1 - p), 1).log(), "loss": -p.log().mean()})


def toy(vit, name, **options):
    """How high the agent ranks the informative patches after learning: mean place of the three, 1 at best.

    The images are faint, so that a patch is known by its position; what is learned is all that ranks.
    """
    options = {"novelty": 0.0} | options if name == "agentvit-plus" else options
    agent = build(vit, name, desired=6, **options)
    agent.model = classifier = Informative(agent.model)
    labels = torch.zeros(32, dtype=torch.int64)
    for batch in range(250):
        pixel_values, moment = 0.1 * images(32), Moment(batch, batch + 1, 1)
        patches = agent.choose(pixel_values, moment)
        agent.observe(pixel_values, labels, classifier(pixel_values, patches), moment)
        agent.after_step()
    pixel_values = 0.1 * images(64)
    if name == "agentvit-plus":
        scores = agent.logits(agent.features(pixel_values)).mean(0)
    else:
        scores = agent._q(agent.network, agent.state(pixel_values)).mean(0)
        scores = scores[:, 1] - scores[:, 0] if name == "agentvit-dqn" else scores
    places = scores.argsort(descending=True).argsort()
    return places[[1, 6, 11]].float().mean().item()


def test_ours_ranks_the_informative_patches_first(tiny_vit):
    assert toy(tiny_vit(), "agentvit-plus", learn_every=1, learning_rate=1e-2, return_fraction=0.0) == 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_agent_does_not(tiny_vit, seed):
    options = {"learn_every": 1, "silent_epochs": 0, "hidden": 32, "hidden2": 32, "epsilon_end": 1.0}
    assert toy(tiny_vit(), "agentvit", seed=seed, **options) > 2.0


# ---------------------------------------------------------------------------------------------- in the trainer


@pytest.mark.parametrize("agent", AGENTS)
def test_training_with_an_agent_runs_on_fewer_patches_and_evaluates_on_all(tiny_vit, tmp_path, agent):
    trainer = agent_trainer(tiny_vit, tmp_path, agent, desired=6)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"agent/kept", "agent/diversity", "agent/seconds"} <= logged[0].keys()
    assert logged[0]["cost"] < 0.8 and trainer.evaluate()["eval_cost"] == 1.0
    if agent in ("random", "fixed", "center"):
        assert [entry["agent/kept"] for entry in logged] == [6.0] * 8
    if agent == "fixed":
        assert all(entry["agent/diversity"] == 0.0 for entry in logged)
    if agent == "progressive":
        assert [entry["agent/kept"] for entry in logged] == [6 + round(10 * step / 8) for step in range(8)]
    if agent in LEARNING:
        assert any("agent/reward" in entry for entry in logged)
    if agent == "agentvit":
        assert logged[0]["agent/epsilon"] == 1.0 and logged[-1]["agent/epsilon"] < 0.3
    keep_map = trainer.agent.keep_map()
    assert keep_map.shape == (4, 4) and 0 < keep_map.mean() < 1


def test_nothing_is_learned_in_the_first_epoch_and_then_on_every_second_batch(tiny_vit, tmp_path):
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit", count=40, max_steps=20)  # 5 batches per epoch
    sizes = []
    after = trainer.agent.agent.after_step
    trainer.agent.agent.after_step = lambda: (after(), sizes.append(trainer.agent.agent.learn_steps))
    trainer.train()
    assert sizes[:5] == [0] * 5  # silent
    assert [new - old for old, new in zip(sizes[4:], sizes[5:], strict=False)][:10] == [0, 0, 0, 1, 0, 0, 1, 0, 1, 0]


def test_short_and_single_batches_are_rewarded(tiny_vit, tmp_path):
    options = {"agent_options": {**FAST, "learn_every": 1, "silent_epochs": 0}, "max_steps": 8}
    trainer = agent_trainer(tiny_vit, tmp_path / "a", "agentvit", count=11, **options)  # 8 and 3
    trainer.train()
    assert trainer.agent.agent.learn_steps == 7
    single = agent_trainer(tiny_vit, tmp_path / "b", "agentvit-dqn", per_device_train_batch_size=1, **options)
    single.train()
    assert single.agent.agent.learn_steps == 7


def test_the_next_state_is_that_of_the_same_images_after_the_step(tiny_vit, tmp_path):
    options = {"learn_every": 1, "silent_epochs": 0, "epsilon_start": 0.0, "epsilon_end": 0.0}
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit", max_steps=1, learning_rate=0.1, agent_options=options)
    seen = []
    choose = trainer.agent.choose
    trainer.agent.choose = lambda pixel_values: seen.append(pixel_values) or choose(pixel_values)
    before = attention_signal(trainer.model.vit, next(iter(trainer.get_train_dataloader()))["pixel_values"])
    trainer.train()
    (transition,) = trainer.agent.agent.replay.transitions
    assert_close(transition.next_state, attention_signal(trainer.model.vit, seen[0]))
    assert before.shape == transition.state.shape and not torch.equal(transition.state, transition.next_state)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("saved_at", [4, 6])
def test_a_resumed_run_with_an_agent_ends_the_same(tiny_vit, tmp_path, agent, saved_at):
    options = {"dropout": 0.1, "save_strategy": "steps", "save_steps": saved_at, "max_steps": 9, "count": 24}
    straight = agent_trainer(tiny_vit, tmp_path, agent, **options)  # 3 batches per epoch
    straight.train()
    resumed = agent_trainer(tiny_vit, tmp_path, agent, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved_at}"))
    assert_same(weights(straight.model), weights(resumed.model))
    assert_same(flat(straight.agent.state_dict()), flat(resumed.agent.state_dict()))


def flat(value, name=""):
    """Nested dicts and lists of tensors -> {path: tensor}; nothing else is in there."""
    if torch.is_tensor(value):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, entry in pairs for path, leaf in flat(entry, f"{name}/{key}").items()}


@pytest.mark.parametrize("agent", ["agentvit", "agentvit-plus"])
def test_checkpoints_hold_tensors_alone(tiny_vit, tmp_path, agent):
    agent_trainer(tiny_vit, tmp_path, agent, count=24, save_strategy="steps", save_steps=8).train()
    saved = torch.load(tmp_path / "checkpoint-8" / FILE, weights_only=True)
    leaves = flat(saved)
    assert all(torch.is_tensor(leaf) for leaf in leaves.values())
    assert f"/{agent}/agent/generator" in leaves and f"/{agent}/agent/optimizer/0/exp_avg" in leaves


def test_the_agent_leaves_no_trace_in_what_the_model_draws(tiny_vit, tmp_path):
    seen = {}
    for agent in ("none", *AGENTS):
        trainer = agent_trainer(tiny_vit, tmp_path / agent, agent)
        assert_same(weights(trainer.model), seen.setdefault("weights", weights(trainer.model)))
        batches = seen.setdefault(agent, [])
        original = trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, original=original, batches=batches, **kwargs: (
            batches.append(inputs["pixel_values"]) or original(model, inputs, **kwargs)
        )
        trainer.train()
    for agent in AGENTS:
        assert all(torch.equal(one, other) for one, other in zip(seen["none"], seen[agent], strict=True))


def test_accumulation_learns_once_per_rewarded_batch(tiny_vit, tmp_path):
    options = {"agent_options": {**FAST, "learn_every": 1, "silent_epochs": 0}, "gradient_accumulation_steps": 2}
    trainer = agent_trainer(tiny_vit, tmp_path, "agentvit", max_steps=4, **options)
    trainer.train()
    assert trainer.agent.batches == 8 and trainer.agent.agent.learn_steps == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"desired": 0}, "n_patch_desired must be in 1..16"),
        ({"desired": 17}, "n_patch_desired must be in 1..16"),
        ({"agent_options": {"gama": 1.0}}, "has no option 'gama'; its options are"),
        ({"agent_options": {"sample": 0.5}}, "must be a whole number"),
        ({"agent_options": {"sample": 99}}, "sample <= capacity"),
        ({"agent_options": {"learn_every": 0}}, "at least 1"),
        ({"objective": "reinforce"}, "train gates without an agent"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tiny_vit, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        agent_trainer(tiny_vit, tmp_path, **{"agent": "agentvit", **options})


def test_models_that_do_not_fit_are_refused(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="reads the attention of the first layer"):
        agent_trainer(lambda **options: tiny_vit(1, **options), tmp_path, "agentvit")
    agent_trainer(lambda **options: tiny_vit(1, **options), tmp_path, "agentvit-plus")
    with pytest.raises(ValueError, match="train gates without an agent"):
        build_trainer(tiny_vit, tmp_path, agent="random")
    trainer = agent_trainer(tiny_vit, tmp_path, "none")
    trainer.args.agent = "random"
    trainer.model.vit.embeddings.cls_token = None
    with pytest.raises(ValueError, match=r"needs a model with a \[CLS\] token"):
        PatchAgent(trainer)


def test_checkpoints_that_do_not_fit_are_refused(tiny_vit, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 8}
    agent_trainer(tiny_vit, tmp_path, "random", **options).train()
    checkpoint = str(tmp_path / "checkpoint-8")
    with pytest.raises(ValueError, match="trained on 16 patches, this model has 64"):
        agent_trainer(lambda **options: tiny_vit(patch_size=4, **options), tmp_path, "random").train(checkpoint)
    with pytest.raises(ValueError, match="trained with agent 'random', not 'fixed'"):
        agent_trainer(tiny_vit, tmp_path, "fixed").train(checkpoint)
    (tmp_path / "checkpoint-8" / FILE).unlink()
    with pytest.raises(ValueError, match="holds no agent.pt"):
        agent_trainer(tiny_vit, tmp_path, "random").train(checkpoint)


def test_arguments(tmp_path):
    args = DynViTTrainingArguments(str(tmp_path), agent="agentvit", agent_options='{"gamma": 0.5}')
    assert args.agent_options == {"gamma": 0.5} and args.n_patch_desired is None
    for options, message in (({"agent": "dqn"}, "agent must be one of"), ({"agent_options": "3"}, "must be a dict")):
        with pytest.raises(ValueError, match=message):
            DynViTTrainingArguments(str(tmp_path), **options)
    published = AgentViTAgent.Options()
    assert (published.learning_rate, published.clip, published.gamma, published.tau) == (0.01, 100.0, 0.95, 0.1)
    assert (published.capacity, published.sample, published.learn_every, published.target_every) == (64, 8, 50, 2)
    assert published.time_weight == 20.0 and published.loss_weight == 1.0 and published.silent_epochs == 1
    assert issubclass(DQNAgent, AgentViTAgent) and SubsetPolicy.Options().return_fraction > 0
