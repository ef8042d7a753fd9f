"""The policy objective: REINFORCE on the decisions of one forward, at a price of computation that meets the budget."""

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..measure.latency import layer_latencies
from ..model.cost import dense_macs, layer_costs, layer_shares
from ..model.gate import Exploration
from .policy_gradient import (
    advantages,
    depth_weights,
    layer_returns,
    outcome,
    policy_loss,
    terminal_reward,
    value_loss,
)
from .running_means import RunningMoments


class PolicyObjective(TrainerCallback, ExportableState):
    """Teaches whatever gates acted: blocks, sub-layers, heads, patches.

    With `price_gain` the price follows the cost of the batch, so that the budget stays the one dial: `price +
    price_gain * (mean cost - budget)` is the derivative of a squared distance from the budget, as the gradient
    objective has it. A batch of one image says neither what its advantage nor what its cost is to be compared with: there
    running means take the place of the batch's, and of the value baseline (running.py).

    Raises:
        ValueError: nothing would learn, or a value baseline without value networks.
    """

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args
        self.layer_weights = self.running = None
        self._check(trainer.model.learned_gates())
        self.reset()

    def _check(self, gates):
        if not self.args.train_body and not gates:
            raise ValueError("train_body is false, which needs gates that learn: the model has none")
        without = any(gate.value is None for gate in gates)
        if self.args.objective == "reinforce" and self.args.baseline == "value" and without:
            raise ValueError(
                "baseline 'value' needs gates with a value network: give them value_width, or take another baseline"
            )

    def reset(self):
        self.logged = {}

    def state(self):
        running = None if self.running is None else self.running.state()
        weights = None if self.layer_weights is None else self.layer_weights.tolist()
        return {"args": {}, "attributes": {"running": running, "layer_weights": weights}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if args.objective != "reinforce":
            return
        self.running = None
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        saved = saved["attributes"] if isinstance(saved, dict) else {}
        if saved.get("running") is not None:
            self.moments().load(saved["running"])
        if saved.get("layer_weights") is not None:  # measured latencies would be others now
            self.layer_weights = torch.tensor(saved["layer_weights"])
        else:
            self.layer_weights = self._layer_weights(self.trainer.accelerator.unwrap_model(self.trainer.model))

    def moments(self):
        """The `RunningMoments` of this training."""
        if self.running is None:
            self.running = RunningMoments(self.trainer.model.config.num_hidden_layers, self.args.device)
        return self.running

    def price(self, cost):
        """What a cost of 1 takes from the reward, given the costs (B,) of the batch; the same in all processes."""
        budget = self.trainer.schedule.budget()
        # With its own cost in its price, an image would be drawn to half of the budget.
        distance = self.moments().distance(budget) if len(cost) == 1 else cost.detach().mean() - budget
        distance = self.trainer.accelerator.reduce(torch.as_tensor(distance, device=cost.device), "mean")
        return self.args.price + self.args.price_gain * distance

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
        price = self.price(outputs.cost)
        rewards = terminal_reward(earned, spent.sum(0), price, args.reward, args.penalty)
        # The cost of the reward of BlockDrop is not a sum over layers.
        refund = 0.0 if args.reward == "blockdrop" else price
        returns = layer_returns(rewards, spent[deciding], refund, args.returns, args.discount)
        log_probs = torch.stack([decisions[layer].log_prob for layer in deciding])
        entropy = torch.stack([decisions[layer].entropy for layer in deciding]).sum(0).mean()
        values = [decisions[layer].value for layer in deciding]
        total = -args.entropy_weight * entropy
        baseline = 0.0
        if args.baseline == "self-critical":
            baseline = self._greedy_rewards(model, inputs, price)
        elif args.baseline == "value":
            values = torch.stack(values)
            baseline = values.detach()
            total = total + args.value_weight * value_loss(values, returns)
        normalise = args.returns != "dynavit"
        # A running mean of what is left of a value network's error would lag behind the network.
        compared = returns - baseline if args.baseline == "self-critical" else returns
        if normalise and len(earned) == 1:
            advantage = self.moments().normalised(compared, deciding)
        else:
            advantage = advantages(returns, baseline, normalise)
        self.moments().update(*self._of_all_processes(compared, outputs.cost.detach()), deciding)
        total = total + args.policy_weight * policy_loss(log_probs, advantage)
        self._log(reward=rewards.mean(), entropy=entropy.detach(), earned=earned.mean(), price=torch.as_tensor(price))
        return total

    def _of_all_processes(self, returns, cost):
        """returns (L, B) and cost (B,) of the batches of all processes: what they remember must be the same."""
        if self.args.world_size == 1:
            return returns, cost
        gather = self.trainer.accelerator.gather
        return gather(returns.T.contiguous()).T, gather(cost)

    def _spent(self, decisions, outputs):
        """What each layer spent of the weighted cost, (K, B); by default MACs / MACs of the dense model."""
        config = self.trainer.model.config
        num_tokens = self.trainer.model.num_tokens
        given = config, decisions, len(outputs.logits), num_tokens, outputs.logits.device
        if self.layer_weights is None:
            return layer_costs(*given).detach() / dense_macs(config, num_tokens, config.num_labels)
        return self.layer_weights.to(outputs.logits.device)[:, None] * layer_shares(*given).detach()

    @torch.no_grad()
    def _greedy_rewards(self, model, inputs, price):
        """Rewards of the thresholded policy on the same images, the self-critical baseline, (B,)."""
        model.eval()
        outputs = model(**inputs, gating="threshold")
        model.train()
        earned = outcome(outputs.logits, inputs["labels"], self.args.reward)
        spent = self._spent(outputs.decisions, outputs).sum(0)
        return terminal_reward(earned, spent, price, self.args.reward, self.args.penalty)

    def _layer_weights(self, model):
        """(K,) weights of the layers' costs, or None for MACs over those of the whole dense model."""
        if self.args.cost_weights == "depth":
            return depth_weights(model.config.num_hidden_layers)
        if self.args.cost_weights == "latency":
            size = model.config.image_size
            size = (size, size) if isinstance(size, int) else size
            images = torch.randn(8, model.config.num_channels, *size, device=self.args.device)
            return broadcast(layer_latencies(model, images).to(self.args.device)).cpu()
        return None

    def _log(self, **values):
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)

    def logs(self):
        """Means since the last call."""
        means = {name: round(torch.stack(values).float().mean().item(), 4) for name, values in self.logged.items()}
        self.reset()
        return means
