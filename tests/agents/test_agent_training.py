"""Patch agents in the trainer: when they act and learn, identical resume, no trace in the model, and what is refused."""

import pytest
import torch
from agent_models import FAST, LEARNING, agent_trainer, flat
from torch.testing import assert_close
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTTrainingArguments
from hf_dynvit.agents.agentvit import AgentViTAgent
from hf_dynvit.agents.agentvit_dqn import DQNAgent
from hf_dynvit.agents.agentvit_plus import SubsetPolicy
from hf_dynvit.agents.callback import FILE, PatchAgent
from hf_dynvit.agents.features import attention_signal
from hf_dynvit.agents.shelf import AGENTS


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


@pytest.mark.parametrize("agent", ["agentvit-dqn", "agentvit-plus"])
def test_a_second_training_of_one_trainer_begins_with_a_new_agent(tiny_vit, tmp_path, agent):
    trainer = agent_trainer(tiny_vit, tmp_path, agent, count=24, max_steps=-1, num_train_epochs=2)
    moments, choose = [], PatchAgent.choose

    def spied(self, pixel_values):
        patches = choose(self, pixel_values)
        moments.append(self._moment()[:3])
        return patches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchAgent, "choose", spied)
        trainer.train()
        seen, learned = list(moments), flat(trainer.agent.agent.state_dict())
        trainer.train()
    assert moments[len(seen) :] == seen and len(seen) > 3
    assert trainer.agent.images == 48 and learned.keys() == flat(trainer.agent.agent.state_dict()).keys()
