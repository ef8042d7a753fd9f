"""The arguments of a `DynViTTrainer`: those of the `Trainer`, and how gates are taught."""

from dataclasses import dataclass, field

import yaml
from transformers import TrainingArguments

from ..agents.callback import AGENT_EVALUATIONS
from ..agents.shelf import AGENTS
from ..objectives.policy_gradient import COST_WEIGHTS, RETURNS, REWARDS


OBJECTIVES = ("cost", "usage", "reinforce")
BASELINES = ("value", "self-critical", "none")


@dataclass
class DynViTTrainingArguments(TrainingArguments):
    """`TrainingArguments`, and how gates are taught. Fractions are of the whole training.

    Raises:
        ValueError: an unknown objective or agent, a fraction outside [0, 1], or a budget to start from or to tune to
            where the objective follows none.
    """

    objective: str = field(
        default="cost",
        metadata={
            "help": "what teaches gates: 'cost' (mean cost = budget), 'usage' (AdaViT's usage targets) or 'reinforce' "
            "(policy gradient)"
        },
    )
    cost_weight: float = field(default=20.0, metadata={"help": "weight of the squared distance from the budget"})
    usage_weight: float = field(default=2.0, metadata={"help": "weight of AdaViT's usage loss"})
    usage_target: float = field(default=0.5, metadata={"help": "share of tokens, heads and sub-layers to use"})
    gate_learning_rate: float | None = field(
        default=1e-2, metadata={"help": "peak learning rate of the gates; None: that of the body"}
    )
    gate_weight_decay: float | None = field(
        default=0.0, metadata={"help": "weight decay of the gates' weights; None: that of the body"}
    )
    gate_warmup: float = field(default=0.0, metadata={"help": "fraction of training in which all gates stay open"})
    gate_noise_end: float = field(
        default=0.0,
        metadata={"help": "scale of the gates' sampling noise when their training ends; it falls linearly from 1"},
    )
    budget_ramp: float = field(
        default=0.3, metadata={"help": "fraction of training, after the warm-up, in which the budget falls from 1"}
    )
    calibrate_first: bool = field(
        default=False,
        metadata={
            "help": "set the gates' thresholds to the budget before training, instead of leading it there "
            "(budget_ramp): for gates that have an order of their own, such as novelty"
        },
    )
    freeze_gates_at: float = field(
        default=1.0,
        metadata={
            "help": "fraction of training after which gates are fixed and the body is tuned in packed layout; 0: gates "
            "keep the order that they have, and only their thresholds move; without train_body there is nothing to "
            "tune, and gates learn to the end"
        },
    )
    tuning_budgets: list[float] = field(
        default_factory=list,
        metadata={
            "help": "costs that the packed tuning takes in turn, the model's budget first: one training for all of "
            "them; none: the budget alone"
        },
    )
    tuning_gain: float = field(
        default=0.5, metadata={"help": "how fast thresholds follow the budget in packed tuning; 0: not at all"}
    )
    train_body: bool = field(default=True, metadata={"help": "no: only the gates learn, the backbone stays as it is"})
    reward: str = field(
        default="correct",
        metadata={"help": "what a prediction earns: 'correct', 'probability' (of the label) or 'blockdrop'"},
    )
    penalty: float = field(default=1.0, metadata={"help": "what a wrong prediction costs with reward 'blockdrop'"})
    price: float = field(default=0.0, metadata={"help": "what the whole dense cost takes from the reward"})
    price_gain: float = field(
        default=20.0, metadata={"help": "what the price rises by per cost above the budget of the moment; 0: fixed"}
    )
    cost_weights: str = field(
        default="uniform",
        metadata={"help": "weights of the layers' costs: 'uniform' (MACs), 'depth' (the thesis) or 'latency'"},
    )
    returns: str = field(
        default="to-go", metadata={"help": "return of a decision: 'to-go', 'terminal' or 'dynavit' (reproduction)"}
    )
    discount: float = field(default=1.0, metadata={"help": "per layer, for returns 'terminal' and 'dynavit'"})
    baseline: str = field(
        default="value", metadata={"help": "what returns are compared with: 'value', 'self-critical' or 'none'"}
    )
    value_weight: float = field(default=0.5, metadata={"help": "weight of the value networks' squared error"})
    policy_weight: float = field(default=1.0, metadata={"help": "weight of the policy gradient"})
    entropy_weight: float = field(default=0.01, metadata={"help": "weight of the policies' entropy, which is raised"})
    probability_bound: float = field(
        default=0.95, metadata={"help": "policies draw with bound * p + (1 - bound) * (1 - p) (BlockDrop)"}
    )
    curriculum: float = field(
        default=0.0,
        metadata={"help": "fraction of training over which layers join, the last one first; 0: all at once"},
    )
    distillation_weight: float = field(default=1.0, metadata={"help": "weight of the loss against the teacher"})
    distillation_temperature: float = field(default=1.0, metadata={"help": "softens teacher and student"})
    label_weight: float = field(default=1.0, metadata={"help": "weight of the loss against the labels"})
    agent: str = field(
        default="none",
        metadata={
            "help": "what takes patches away in training: 'none', 'agentvit' (published), 'agentvit-dqn', "
            "'agentvit-plus' (ours), or without learning 'random', 'fixed', 'center', 'progressive'"
        },
    )
    n_patch_desired: int | None = field(
        default=None, metadata={"help": "patches that the agent aims to keep; None: half of them"}
    )
    agent_options: dict | str | None = field(
        default=None, metadata={"help": "the agent's own options, as a dict or its JSON or YAML"}
    )
    agent_evaluation: str = field(
        default="all",
        metadata={
            "help": "patches in evaluation: 'all', or 'chosen': beside it, as eval_chosen_*, those alone that the "
            "agent chooses for each image"
        },
    )
    calibration_images: int = field(
        default=512,
        metadata={"help": "images on which the gates are shifted until the mean cost is the budget; 0: off"},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {self.objective!r}")
        choices = {"reward": REWARDS, "returns": RETURNS, "cost_weights": COST_WEIGHTS, "baseline": BASELINES}
        choices["agent_evaluation"] = AGENT_EVALUATIONS
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.agent not in ("none", *AGENTS):
            raise ValueError(f"agent must be one of {('none', *AGENTS)}, got {self.agent!r}")
        if self.agent_evaluation == "chosen" and self.agent == "none":
            raise ValueError("agent_evaluation 'chosen' needs an agent to choose: name one, got agent 'none'")
        if isinstance(self.agent_options, str):
            self.agent_options = yaml.safe_load(self.agent_options)
        if not isinstance(self.agent_options, dict | None):
            raise ValueError(f"agent_options must be a dict, got {self.agent_options!r}")
        if not 0.5 < self.probability_bound <= 1.0:
            raise ValueError(f"probability_bound must be in (0.5, 1], got {self.probability_bound}")
        for name in ("curriculum", "gate_warmup", "budget_ramp", "gate_noise_end", "freeze_gates_at", "usage_target"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        wrong = [budget for budget in self.tuning_budgets if not 0.0 < budget <= 1.0]
        if wrong or self.tuning_gain < 0:
            raise ValueError(
                f"tuning_budgets must be in (0, 1] and tuning_gain at least 0, got {self.tuning_budgets} "
                f"and {self.tuning_gain}"
            )
        self._check_budgets()
        if not self.train_body:
            self.freeze_gates_at = 1.0
        if self.tuning_budgets and self.freeze_gates_at == 1.0:
            raise ValueError(
                f"tuning_budgets {self.tuning_budgets} are for the packed tuning, and there is none: give freeze_gates_at "
                "below 1, and leave the body to train (train_body)"
            )
        if self.gate_warmup and self.gate_warmup >= self.freeze_gates_at:
            raise ValueError(
                f"gate_warmup ({self.gate_warmup}) must end before freeze_gates_at ({self.freeze_gates_at}): "
                "gates would never learn"
            )

    def __getstate__(self):
        """Without tokens: what is pickled is training_args.bin, beside the weights of each checkpoint."""
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}

    def _check_budgets(self):
        given = [name for name in ("calibrate_first", "tuning_budgets") if getattr(self, name)]
        if given and not self.follows_budget():
            raise ValueError(
                f"{' and '.join(given)} cannot be given with an objective that follows no budget: objective "
                f"{self.objective!r}, price_gain {self.price_gain}"
            )
        if self.calibrate_first and self.calibration_images < 1:
            raise ValueError(
                f"calibrate_first needs calibration_images of at least 1, got {self.calibration_images}: gates would "
                "stay where they are, and no budget_ramp would lead them"
            )

    def prediction_teaches(self):
        """Whether losses of the prediction reach anything that learns: the body, or gates that are straight-through."""
        return self.train_body or self.objective != "reinforce"

    def follows_budget(self):
        """Whether the objective aims at the model's budget."""
        return self.objective == "cost" or (self.objective == "reinforce" and self.price_gain > 0)
