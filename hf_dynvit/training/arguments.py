"""`DynViTTrainingArguments`: those of the `Trainer`, and of objective, schedule, packed tuning and agent."""

from dataclasses import MISSING, asdict, dataclass, fields
from functools import wraps

import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..agents.callback import AGENT_EVALUATIONS
from ..agents.shelf import AGENTS
from ..objectives.shelf import build_objective, flat_options, own_options
from .sharing import SHARES


def with_flat_options(kind):
    """Lets a dataclass of arguments take options of objectives as arguments: they land in its `objective_options`."""
    init = kind.__init__

    @wraps(init)
    def __init__(self, *args, **given):
        own = {argument.name for argument in fields(kind)}
        flat = {name: given.pop(name) for name in flat_options() if name in given and name not in own}
        options = as_dict("objective_options", given.get("objective_options"))
        given["objective_options"] = own_options(given.get("objective", kind.objective), flat) | options
        init(self, *args, **given)

    kind.__init__, kind.flat_options = __init__, staticmethod(flat_options)
    return kind


@with_flat_options
@dataclass
class DynViTTrainingArguments(TrainingArguments):
    """`TrainingArguments`, and how gates are taught. Fractions are of the whole training.

    The options of the objective are given by name (`cost_weight=40`) or in `objective_options`, which counts more; by
    name those of other objectives do not count. `hf_dynvit.objectives` says which there are.

    Raises:
        ValueError: an unknown objective, agent or option, a fraction outside [0, 1], or a budget to start from or to tune
            to where the objective follows none.
    """

    objective: str = HfArg(
        default="cost",
        help="what teaches gates: 'cost' (mean cost = budget), 'usage' (AdaViT), 'rate' (DynamicViT), 'auxiliary' (Token Cropr) or "
        "'reinforce' (policy gradient)",
    )
    objective_options: dict | str | None = HfArg(
        default=None, help="the objective's own options, as a dict or its JSON or YAML"
    )
    gate_learning_rate: float | None = HfArg(
        default=1e-2, help="peak learning rate of the gates; None: that of the body"
    )
    gate_weight_decay: float | None = HfArg(
        default=0.0, help="weight decay of the gates' weights; None: that of the body"
    )
    gate_noise_start: float = HfArg(
        default=1.0,
        help="Gumbel noise scale, at the start, of gates that are sampled (cost, usage, rate); 0, with gate_noise_end 0: none, they decide as in "
        "evaluation",
    )
    gate_noise_end: float = HfArg(
        default=0.0,
        help="the same at the end of their training, annealed linearly from gate_noise_start",
    )
    budget_ramp: float = HfArg(default=0.3, help="fraction of training in which the budget falls from 1")
    calibrate_first: bool = HfArg(
        default=False,
        help="set the gates' thresholds to the budget before training, instead of leading it there (budget_ramp): for "
        "gates that have an order of their own, such as novelty",
    )
    calibration_images: int = HfArg(
        default=512, help="images on which the gates are shifted until the mean cost is the budget; 0: off"
    )
    importance_images: int = HfArg(
        default=0,
        help="images on which gates of tokens learn, before training, which tokens the prediction depends on "
        "(fit_importance; no labels are used), and again after it, before the calibration, if gates are frozen from the "
        "start; 0: off",
    )
    bypass_images: int = HfArg(
        default=0,
        help="images on which what skipped blocks add instead is fitted before training, of gates with a bypass; 0: off",
    )
    harm_images: int = HfArg(
        default=0,
        help="images on which gates of heads and sub-layers learn, before training, what skipping each costs the prediction "
        "(fit_harm; no labels are used), and on which it is tried how much of the budget they save; 0: off",
    )
    harm_per_image: bool = HfArg(
        default=True,
        help="no: with harm_images, heads and sub-layers are skipped alike in all images, by their mean harm: the twin that "
        "decides nothing per image",
    )
    harm_shares: list[float] = HfArg(
        default_factory=lambda: list(SHARES),
        help="shares of the computation for heads and sub-layers to save that are tried with harm_images, beside learned gates "
        "of tokens",
    )
    freeze_gates_at: float = HfArg(
        default=1.0,
        help="fraction of training after which gates are fixed and the body is tuned in packed layout; 0: gates keep "
        "the order that they have, and only their thresholds move; without train_body gates learn to the end",
    )
    tuning_budgets: list[float] = HfArg(
        default_factory=list,
        help="costs that the packed tuning takes in turn, the model's budget among them, and for which the model has thresholds "
        "in the end (a table of budgets, with images to calibrate on); none: it alone",
    )
    looks_together: bool = HfArg(
        default=False,
        help="every step trains all looks of a cascade on its images, not one look in turn, at the price of all of their "
        "time and memory",
    )
    tuning_gain: float = HfArg(
        default=0.5, help="how fast thresholds follow the budget in packed tuning; 0: not at all"
    )
    train_body: bool = HfArg(default=True, help="no: only the gates learn, the backbone stays as it is")
    distillation_weight: float = HfArg(default=1.0, help="weight of the loss against the teacher")
    agent: str = HfArg(
        default="none",
        help="what takes patches away in training: 'none', 'agentvit' (published), 'agentvit-dqn', 'agentvit-plus' "
        "(ours), or without learning 'random', 'fixed', 'center', 'progressive'",
    )
    agent_options: dict | str | None = HfArg(
        default=None, help="the agent's own options, as a dict or its JSON or YAML"
    )
    n_patch_desired: int | None = HfArg(default=None, help="patches that the agent aims to keep; None: half of them")
    agent_evaluation: str = HfArg(
        default="all",
        help="patches in evaluation: 'all', or 'chosen': beside it, as eval_chosen_*, those alone that the agent "
        "chooses for each image",
    )

    def __post_init__(self):
        super().__post_init__()
        self.make_objective()  # which refuses unknown options
        for name, known in (("agent_evaluation", AGENT_EVALUATIONS), ("agent", ("none", *AGENTS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.agent_evaluation == "chosen" and self.agent == "none":
            raise ValueError("agent_evaluation 'chosen' needs an agent to choose: name one, got agent 'none'")
        if self.agent_options is not None:
            self.agent_options = as_dict("agent_options", self.agent_options)
        for name in ("budget_ramp", "gate_noise_start", "gate_noise_end", "freeze_gates_at"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        wrong = [budget for budget in self.tuning_budgets if not 0.0 < budget <= 1.0]
        if wrong or self.tuning_gain < 0:
            raise ValueError(
                f"tuning_budgets must be in (0, 1] and tuning_gain at least 0, got {self.tuning_budgets} "
                f"and {self.tuning_gain}"
            )
        for name in ("bypass_images", "importance_images", "harm_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.harm_images == 1 or (self.harm_images and not self.calibrate_first):
            raise ValueError(
                "harm_images must be at least 2, what is learned on one half is tried on the other, and given with calibrate_first, "
                f"for they end at the budget: got {self.harm_images}, calibrate_first {self.calibrate_first}"
            )
        changed = [
            name
            for name, value in (("harm_per_image", True), ("harm_shares", list(SHARES)))
            if getattr(self, name) != value
        ]
        if changed and not self.harm_images:
            raise ValueError(f"{' and '.join(changed)} are for harm_images, and there are none: got {changed}")
        if not self.harm_per_image and self.freeze_gates_at > 0:
            raise ValueError(
                "without harm_per_image gates decide nothing per image, which they would learn again: give freeze_gates_at 0, got "
                f"{self.freeze_gates_at}"
            )
        self._check_budgets()
        if not self.train_body:
            self.freeze_gates_at = 1.0
        if self.tuning_budgets and self.freeze_gates_at == 1.0:
            raise ValueError(
                f"tuning_budgets {self.tuning_budgets} are for the packed tuning, and there is none: give freeze_gates_at "
                "below 1, and leave the body to train (train_body)"
            )

    def __getstate__(self):
        """Without tokens: what is pickled is training_args.bin, beside the weights of each checkpoint."""
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}

    def _check_budgets(self):
        given = [name for name in ("calibrate_first", "tuning_budgets") if getattr(self, name)]
        if given and not self.follows_budget():
            raise ValueError(
                f"{' and '.join(given)} cannot be given with an objective that follows no budget: objective "
                f"{self.objective!r}, options {self.objective_options}"
            )
        if self.calibrate_first and self.calibration_images < 1:
            raise ValueError(
                f"calibrate_first needs calibration_images of at least 1, got {self.calibration_images}: gates would "
                "stay where they are, and no budget_ramp would lead them"
            )

    def to_sanitized_dict(self):
        """As the `Trainer`'s, with the options of the objective by name, whether they were given or are the defaults."""
        others = super().to_sanitized_dict()
        others.pop("objective_options")  # the same training has others where it was given what is the default
        return asdict(self.make_objective().options) | others

    def make_objective(self):
        """The objective that the arguments name, with its options, as yet without a trainer."""
        return build_objective(self.objective, self.objective_options)

    def images_first(self):
        """What is learned before training, from images: argument -> how many."""
        counts = {name: getattr(self, name) for name in ("bypass_images", "importance_images", "harm_images")}
        if self.calibrate_first:
            counts["calibrate_first"] = self.calibration_images
        return {name: count for name, count in counts.items() if count}

    def follows_budget(self):
        """Whether the objective aims at the model's budget."""
        return self.make_objective().follows_budget

    def prediction_teaches(self):
        """Whether losses of the prediction reach anything that learns: the body, or gates that are straight-through."""
        return self.train_body or not self.make_objective().trains_packed


def as_dict(name, value):
    """A dict that is given as such, or as its JSON or YAML; {} for none."""
    value = yaml.safe_load(value) if isinstance(value, str) else value
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} must be a dict, got {value!r}")
    return value or {}


def is_default(name, value):
    """Whether a value is what a training option is that was not given; results write lists as words."""
    known = {entry.name: entry for entry in fields(DynViTTrainingArguments)}
    if name not in known:
        return False
    default, made = known[name].default, known[name].default_factory
    default = default if made is MISSING else made()
    return value in (default, str(default))
