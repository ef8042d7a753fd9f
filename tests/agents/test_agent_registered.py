"""An agent from outside the package: registered by name, it trains, resumes, is counted and refuses like ours."""

from dataclasses import dataclass

import pytest
import torch
from agent_models import agent_trainer, flat
from trainers import assert_same, weights

from hf_dynvit import DynViTTrainingArguments
from hf_dynvit.agents import AGENTS, Agent, register_agent, share
from hf_dynvit.model.cost import dense_macs


class LowLoss(Agent):
    """Keeps the patches whose batches have had the smallest losses, with noise while it explores."""

    @dataclass
    class Options:
        """`noise`: how far chance may move the order."""

        noise: float = share(0.5)

    def __init__(self, model, desired, options, device, seed):
        super().__init__(model, desired, options, device, seed)
        self.losses, self._chosen = torch.zeros(self.patches, device=device), None

    def choose(self, pixel_values, moment, explore=True):
        noise = self.options.noise * torch.rand(self.patches, generator=self.generator) if explore else 0.0
        kept = (self.losses + noise).argsort(stable=True)[: self.desired].sort().values
        if explore:
            self._chosen = kept
        return kept

    def observe(self, pixel_values, labels, outputs, moment):
        self.losses[self._chosen] += outputs.loss.detach()
        self.log(worst=self.losses.max())

    def choice_macs(self):
        return 1000

    def state_dict(self):
        return super().state_dict() | {"losses": self.losses}

    def load_state_dict(self, saved):
        super().load_state_dict(saved)
        self.losses.copy_(saved["losses"])


@pytest.fixture
def low_loss():
    """The name of the agent, on the shelf while the test runs."""
    register_agent("low-loss", LowLoss, noise=0.25)
    yield "low-loss"
    del AGENTS["low-loss"]


def test_it_trains_on_the_patches_it_chooses(tiny_vit, tmp_path, low_loss):
    trainer = agent_trainer(tiny_vit, tmp_path, low_loss, desired=6)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["agent/kept"] for entry in logged] == [6.0] * 8
    assert logged[-1]["agent/worst"] > logged[0]["agent/worst"] > 0 and logged[0]["cost"] < 0.6
    assert trainer.agent.report()["options"] == {"noise": 0.25}


def test_it_resumes_exactly(tiny_vit, tmp_path, low_loss):
    options = {"dropout": 0.1, "save_strategy": "steps", "save_steps": 4, "max_steps": 9, "count": 24}
    straight, resumed = (agent_trainer(tiny_vit, tmp_path, low_loss, **options) for _ in range(2))
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(weights(straight.model), weights(resumed.model))
    assert_same(flat(straight.agent.state_dict()), flat(resumed.agent.state_dict()))


def test_what_it_computes_is_counted(tiny_vit, tmp_path, low_loss):
    trainer = agent_trainer(tiny_vit, tmp_path, low_loss, desired=6, agent_evaluation="chosen")
    metrics = trainer.evaluate()
    with torch.no_grad():
        alone = trainer.model.eval()(torch.zeros(1, 3, 32, 32), patches=torch.arange(6)).cost.item()
    of_choice = 1000 / dense_macs(trainer.model.config, 17, 3)
    assert metrics["eval_cost"] == 1.0
    assert metrics["eval_chosen_cost"] == pytest.approx(alone + of_choice) and of_choice > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nois": 0.1}, "agent 'low-loss' has no option 'nois'"),
        ({"noise": 2}, r"noise .* must be a number in \[0, 1\]"),
    ],
)
def test_its_options_are_checked(tiny_vit, tmp_path, low_loss, options, message):
    with pytest.raises(ValueError, match=message):
        agent_trainer(tiny_vit, tmp_path, low_loss, agent_options=options)


def test_what_cannot_stand_on_the_shelf_is_refused(tmp_path, low_loss):
    other = type("Other", (LowLoss,), {})
    for name in (low_loss, "random", "none"):
        with pytest.raises(ValueError, match=f"an agent {name!r} already"):
            register_agent(name, other)
    anew = type("LowLoss", (Agent,), {"__module__": LowLoss.__module__})
    register_agent(low_loss, anew)
    assert AGENTS[low_loss] == (anew, {})
    with pytest.raises(TypeError, match="must be a subclass of hf_dynvit.agents.Agent"):
        register_agent("other", dict)
    with pytest.raises(ValueError, match="agent must be one of"):
        DynViTTrainingArguments(str(tmp_path), agent="other")
