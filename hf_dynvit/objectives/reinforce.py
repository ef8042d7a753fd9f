"""The reinforce objective: a policy gradient (REINFORCE) on the decisions of one forward, with a cost penalty.

    loss = -mean_b sum_l A_lb log pi(a_lb)  +  value_weight * (V - G)^2  -  entropy_weight * H        (Williams, 1992)

    reward R_b = task reward_b - cost penalty * cost_b
    cost penalty = price + price_gain * (mean_b cost_b - scheduled budget)

G_lb: return of R_b for layer l; A = G - baseline, normalised over the batch; V: value networks; H: entropy. The
proportional part of the cost penalty is the derivative of the loss of `cost`. With `cost_weights: latency` the reward sees
milliseconds instead, by a table of this device: of each layer for its tokens, with its gates, over those of the dense
model for a batch of one image; the budget stays one of MACs. Decisions pass no gradient on, so training
runs packed, which skips what they drop; `cost`, `usage` and `rate` need all tokens for their straight-through gradients.
"""

from dataclasses import asdict, dataclass

import torch
from accelerate.utils import broadcast_object_list

from ..measure.latency import LatencyTable
from ..measure.layer_times import measure_latencies
from ..model.configuration_dynvit import pair
from ..model.cost import dense_macs, layer_costs, layer_shares
from ..model.gate import Exploration
from .base import Objective
from .options import choice, option, share
from .policy_gradient import (
    COST_WEIGHTS,
    RETURNS,
    advantages,
    depth_weights,
    layer_returns,
    outcome,
    policy_loss,
    terminal_reward,
    value_loss,
)
from .running_means import RunningMoments


class ReinforceObjective(Objective):
    """Policy gradient for all gates that acted: on blocks, sub-layers, heads, patches.

    In a batch of one image, running means (running_means.py) replace the batch's means and the value baseline.

    Raises:
        ValueError: from `prepare`, a value baseline without value networks.
    """

    @dataclass
    class Options:
        reward: str = choice(
            "correct",
            "probability",
            help="task reward: 1 for a 'correct' prediction, or the 'probability' of the label",
        )
        price: float = option(
            0.0, help="constant part of the cost penalty: what the dense model's cost takes from the reward"
        )
        price_gain: float = option(
            20.0, help="proportional gain: cost penalty = price + price_gain * (batch mean cost - scheduled budget)"
        )
        cost_weights: str = choice(
            *COST_WEIGHTS,
            help="of layers: 'uniform' (MACs), 'depth' (the thesis), 'latency' (milliseconds of this device)",
        )
        returns: str = choice(*RETURNS, help="return of a decision: 'to-go', 'terminal', 'dynavit' (reproduction)")
        discount: float = option(1.0, help="per layer, for returns 'terminal' and 'dynavit'")
        baseline: str = choice("value", "self-critical", "none", help="what returns are compared with")
        value_weight: float = option(0.5, help="weight of the value networks' squared error")
        entropy_weight: float = option(0.01, help="weight of the policies' entropy, which is raised")
        probability_bound: float = share(
            0.95, help="policies draw with bound * p + (1 - bound) * (1 - p) (BlockDrop); above 0.5"
        )
        curriculum: float = share(
            0.0, help="fraction of training over which layers join, the last one first; 0: all at once"
        )

        def __post_init__(self):
            if not self.probability_bound > 0.5:
                raise ValueError(f"probability_bound must be in (0.5, 1], got {self.probability_bound}")
            if self.returns == "dynavit" and self.discount == 1.0:
                raise ValueError(
                    "returns 'dynavit' compare the layers of an image, which have the same return without a discount: give one "
                    f"below 1, got {self.discount}"
                )

    trains_packed = True

    def __init__(self, options):
        super().__init__(options)
        self.layer_weights = self.latencies = self.running = None

    @property
    def follows_budget(self):
        return self.options.price_gain > 0

    def prepare(self, trainer):
        super().prepare(trainer)
        gates = trainer.model.learned_gates()
        if self.options.baseline == "value" and any(gate.value is None for gate in gates):
            raise ValueError(
                "baseline 'value' needs gates with a value network: give them value_width, or take another baseline"
            )

    def state_dict(self):
        running = None if self.running is None else self.running.state()
        weights = None if self.layer_weights is None else self.layer_weights.tolist()
        latencies = None if self.latencies is None else asdict(self.latencies)
        return {"running": running, "layer_weights": weights, "latencies": latencies}

    def load_state_dict(self, saved):
        self.layer_weights = self.latencies = self.running = None
        if saved.get("running") is not None:
            self.moments().load(saved["running"])
        weights, latencies = saved.get("layer_weights"), saved.get("latencies")
        if self.options.cost_weights == "depth":
            self.layer_weights = depth_weights(self.trainer.model.config.num_hidden_layers)
        elif self.options.cost_weights != "latency":
            return
        elif weights is not None:  # of the latencies of whole layers, which a training of before has begun with
            self.layer_weights = torch.tensor(weights)
        else:  # measured anew they would be others
            self.latencies = self._measured() if latencies is None else LatencyTable(**latencies)

    def moments(self):
        """The `RunningMoments` of this training."""
        if self.running is None:
            self.running = RunningMoments(self.trainer.model.config.num_hidden_layers, self.trainer.args.device)
        return self.running

    def price(self, cost, budget):
        """The cost penalty, a scalar, given the costs (B,) of the batch; the same in all processes."""
        # With its own cost in its price, an image would be drawn to half of the budget.
        distance = self.moments().distance(budget) if len(cost) == 1 else cost.detach().mean() - budget
        distance = self.trainer.accelerator.reduce(torch.as_tensor(distance, device=cost.device), "mean")
        return self.options.price + self.options.price_gain * distance

    def exploration(self, step):
        layers, curriculum = self.trainer.model.config.num_hidden_layers, self.options.curriculum
        opened = 1.0 if curriculum == 0 else min(1.0, step.progress / curriculum)
        # The last layer's policy acts from the first step on.
        return Exploration(bound=self.options.probability_bound, from_layer=int((1 - opened) * (layers - 1)))

    def loss(self, model, inputs, outputs, step):
        """The policies' and value networks' part of the loss; 0 where nothing acted."""
        options, decisions = self.options, outputs.decisions
        deciding = [layer for layer, decision in enumerate(decisions) if decision.log_prob is not None]
        if not deciding:
            return 0.0
        earned = outcome(outputs.logits, inputs["labels"], options.reward, self.trainer.model.config.problem_type)
        spent = self._spent(outputs)  # (K, B)
        price = self.price(outputs.cost, step.budget)
        rewards = terminal_reward(earned, spent.sum(0), price)
        returns = layer_returns(rewards, spent[deciding], price, options.returns, options.discount)
        log_probs = torch.stack([decisions[layer].log_prob for layer in deciding])
        entropy = torch.stack([decisions[layer].entropy for layer in deciding]).sum(0).mean()
        total = -options.entropy_weight * entropy
        baseline = 0.0
        if options.baseline == "self-critical":
            baseline = self._greedy_rewards(model, inputs, price)
        elif options.baseline == "value":
            values = torch.stack([decisions[layer].value for layer in deciding])
            baseline = values.detach()
            total = total + options.value_weight * value_loss(values, returns)
        normalise = options.returns != "dynavit"
        # A running mean of what is left of a value network's error would lag behind the network.
        compared = returns - baseline if options.baseline == "self-critical" else returns
        if normalise and len(earned) == 1:
            advantage = self.moments().normalised(compared, deciding)
        else:
            advantage = advantages(returns, baseline, normalise)
        self.moments().update(*self._of_all_processes(compared, outputs.cost.detach()), deciding)
        self.log(reward=rewards.mean(), entropy=entropy.detach(), earned=earned.mean(), price=torch.as_tensor(price))
        return total + policy_loss(log_probs, advantage)

    def _of_all_processes(self, returns, cost):
        """returns (L, B) and cost (B,) of the batches of all processes: what they remember must be the same."""
        if self.trainer.args.world_size == 1:
            return returns, cost
        gather = self.trainer.accelerator.gather
        return gather(returns.T.contiguous()).T, gather(cost)

    def _spent(self, outputs):
        """Weighted cost of each layer, (K, B); by default MACs / MACs of the dense model."""
        model, device = self.trainer.model, outputs.logits.device
        if self.latencies is not None:
            return self.latencies.of_layers(model, outputs) / self.latencies.dense(model)
        given = model.config, outputs.decisions, len(outputs.logits), model.tokens_run, device, model.gates
        if self.layer_weights is None:
            return layer_costs(*given).detach() / dense_macs(model.config, model.num_tokens, model.config.num_labels)
        return self.layer_weights.to(device)[:, None] * layer_shares(*given).detach()

    @torch.no_grad()
    def _greedy_rewards(self, model, inputs, price):
        """Rewards of the thresholded policy on the same images, the self-critical baseline, (B,)."""
        model.eval()
        outputs = model(**self.trainer.task_loss.inputs(inputs), gating="threshold")
        model.train()
        problem = self.trainer.model.config.problem_type
        earned = outcome(outputs.logits, inputs["labels"], self.options.reward, problem)
        return terminal_reward(earned, self._spent(outputs).sum(0), price)

    def _measured(self):
        """The `LatencyTable` of the model on this device, that of the first process for all."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        shape = (1, model.config.num_channels, *pair(model.config.image_size))
        table = measure_latencies(model, torch.zeros(shape, device=self.trainer.args.device, dtype=model.dtype))
        return broadcast_object_list([table])[0]
