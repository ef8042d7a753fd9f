"""The policy objective: REINFORCE on the decisions of one forward, with a price of computation that meets the budget."""

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .cost import dense_macs, layer_costs, layer_macs
from .gate import Exploration
from .latency import layer_latencies
from .reinforce import (
    advantages,
    depth_weights,
    layer_returns,
    outcome,
    policy_loss,
    terminal_reward,
    value_loss,
)


class PolicyObjective(TrainerCallback, ExportableState):
    """Teaches whatever gates acted: blocks, sub-layers, heads, patches.

    Attributes:
        price: what a cost of 1 takes from the reward. With `price_rate` it rises while the mean cost is above the
            budget and falls while it is below (dual ascent), so that the budget stays the one dial.
    """

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args
        self.price = self.args.price
        self.layer_weights = None
        self.reset()

    def reset(self):
        self.logged = {}

    def state(self):
        return {"args": {}, "attributes": {"price": self.price}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.price = saved["attributes"]["price"] if isinstance(saved, dict) else args.price
        if args.objective == "reinforce":
            self.layer_weights = self._layer_weights(self.trainer.accelerator.unwrap_model(self.trainer.model))

    def on_step_end(self, args, state, control, **kwargs):
        if args.objective != "reinforce" or not args.price_rate or not self.trainer.step_costs:
            return
        cost = self.trainer.accelerator.reduce(torch.stack(self.trainer.step_costs).mean(), "mean").item()
        self.price = max(0.0, self.price + args.price_rate * (cost - self.trainer.model.config.budget))

    def exploration(self, progress):
        """How the policies draw at this point of training, in [0, 1]."""
        layers = self.trainer.model.config.num_hidden_layers
        opened = 1.0 if self.args.curriculum == 0 else min(1.0, progress / self.args.curriculum)
        # The last layer's policy acts from the first step on.
        return Exploration(bound=self.args.probability_bound, from_layer=int((1 - opened) * (layers - 1)))

    def loss(self, model, inputs, outputs):
        """The policies' and value networks' part of the loss; 0 where nothing acted."""
        args, decisions = self.args, outputs.decisions
        deciding = [layer for layer, decision in enumerate(decisions) if decision.log_prob is not None]
        if not deciding:
            return 0.0
        earned = outcome(outputs.logits, inputs["labels"], args.reward)
        spent = self._spent(decisions, outputs)  # (K, B)
        rewards = terminal_reward(earned, spent.sum(0), self.price, args.reward, args.penalty)
        price = 0.0 if args.reward == "blockdrop" else self.price  # its cost is not a sum over layers
        returns = layer_returns(rewards, spent[deciding], price, args.returns, args.discount)
        log_probs = torch.stack([decisions[layer].log_prob for layer in deciding])
        entropy = torch.stack([decisions[layer].entropy for layer in deciding]).sum(0).mean()
        values = [decisions[layer].value for layer in deciding]
        total = -args.entropy_weight * entropy
        baseline = 0.0
        if args.baseline == "self-critical":
            baseline = self._greedy_rewards(model, inputs)
        elif args.baseline == "value":
            values = torch.stack(values)
            baseline = values.detach()
            total = total + args.value_weight * value_loss(values, returns)
        advantage = advantages(returns, baseline, normalise=args.returns != "dynavit")
        total = total + args.policy_weight * policy_loss(log_probs, advantage)
        self._log(reward=rewards.mean(), entropy=entropy.detach(), earned=earned.mean())
        return total

    def _spent(self, decisions, outputs):
        """What each layer spent of the weighted cost, (K, B); by default MACs / MACs of the dense model."""
        config = self.trainer.model.config
        num_tokens = self.trainer.model.vit.embeddings.position_embeddings.shape[1]
        macs = layer_costs(config, decisions, len(outputs.logits), num_tokens, outputs.logits.device).detach()
        if self.layer_weights is None:
            return macs / dense_macs(config, num_tokens, config.num_labels)
        shares = macs / layer_macs(config, num_tokens, num_tokens, config.num_attention_heads)
        return self.layer_weights.to(macs.device)[:, None] * shares

    @torch.no_grad()
    def _greedy_rewards(self, model, inputs):
        """Rewards of the thresholded policy on the same images, the self-critical baseline, (B,)."""
        model.eval()
        outputs = model(**inputs, gating="threshold")
        model.train()
        earned = outcome(outputs.logits, inputs["labels"], self.args.reward)
        spent = self._spent(outputs.decisions, outputs).sum(0)
        return terminal_reward(earned, spent, self.price, self.args.reward, self.args.penalty)

    def _layer_weights(self, model):
        """(K,) weights of the layers' costs, or None for MACs over those of the whole dense model."""
        if self.args.cost_weights == "depth":
            return depth_weights(model.config.num_hidden_layers)
        if self.args.cost_weights == "latency":
            size = model.config.image_size
            size = (size, size) if isinstance(size, int) else size
            images = torch.randn(8, model.config.num_channels, *size, device=self.args.device)
            return layer_latencies(model, images)
        return None

    def _log(self, **values):
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)

    def logs(self):
        """Means since the last call, and the price."""
        means = {name: round(torch.stack(values).mean().item(), 4) for name, values in self.logged.items()}
        self.reset()
        return means | {"price": round(self.price, 4)} if means else {}
