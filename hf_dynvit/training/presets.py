"""Presets: defaults of `DynViTTrainingArguments` for the gates of each, which anything given overrides.

`adavit-official` and `layerskip-dynavit` are the published code's own way. What they do not reproduce:

1. Data, augmentation, learning rates of the body, schedule and gradient clipping are the recipe's. One optimiser holds
   all; its cosine goes to 0, where the public code of layer skipping ends at 1e-5.
2. `adavit-official`: token gates begin at a logit of 0.41, just above the threshold, and the others at 0.01, with weights
   of 0 (published: all at 0, weights of deviation 0.02): nothing is skipped in evaluation before anything is learned. In
   training 16.6 % of the tokens are kept at first (published: 11.6 %), and half of heads and sub-layers, as published.
3. `adavit-official`: a head that is off is masked after the attention and at the MLP's input; the published code masks
   queries, keys, values, projection and MLP. What is computed is the same, the straight-through gradient is not.
4. `adavit-official`: DropPath and EMA of the weights are left out.
5. `layerskip-dynavit`: evaluation takes the likelier action, where the public code draws, and gradients are accumulated,
   where it throws all but the last away. Clipping, where it is on, is of body and policies together.
"""

from dataclasses import replace

from ..model.gates import GATES
from ..model.preset_gates import PRESET_GATES, preset_gates


# Nothing of ours beside the published loss: no ramp, frozen phase, tuning, calibration or teacher.
_AS_PUBLISHED = {
    "budget_ramp": 0.0,
    "calibrate_first": False,
    "calibration_images": 0,
    "freeze_gates_at": 1.0,
    "distillation_weight": 0.0,
    "train_body": True,
}
FAITHFUL = ("adavit-official", "layerskip-dynavit")

# The gates have an order from the start, or, of `avit`, begin at the budget at random: they are not led there, and learn
# slowly, so as not to lose it.
_ORDERED = {"objective": "cost", "calibrate_first": True, "gate_learning_rate": 1e-3}

# Nothing is learned but the body, from the first step in the packed layout.
_RULE = {"objective": "cost", "freeze_gates_at": 0.0}

PRESET_ARGUMENTS = {
    "adavit": _ORDERED,
    # The order is learned in closed form, before the first step and after the last; the body is tuned packed.
    "merge": {**_ORDERED, "importance_images": 256, "freeze_gates_at": 0.0},
    # The same for heads and sub-layers, beside it: what they skip, and how much, is found before the first step.
    "adavit-plus": {
        **_ORDERED,
        "bypass_images": 256,
        "importance_images": 256,
        "harm_images": 256,
        "freeze_gates_at": 0.0,
    },
    "adavit-official": {
        **_AS_PUBLISHED,
        "objective": "usage",
        "usage_target": 0.5,
        "usage_weight": 2.0,
        "gate_noise_end": 1.0,
        "gate_learning_rate": None,  # the body's, and its weight decay
        "gate_weight_decay": None,
    },
    "layerskip": {
        "objective": "reinforce",
        "budget_ramp": 0.15,
        "curriculum": 0.1,
        "gate_learning_rate": 2e-3,
    },
    # The public code as it is, its defects included: `returns="dynavit"` normalises over the layers of one image,
    # which leaves the sign of the reward alone; no entropy, bound or curriculum; the price never changes.
    "layerskip-dynavit": {
        **_AS_PUBLISHED,
        "objective": "reinforce",
        "reward": "correct",
        "returns": "dynavit",
        "discount": 0.9,
        "baseline": "value",
        "cost_weights": "depth",
        "price": 3.0,
        "price_gain": 0.0,
        "value_weight": 1.0,
        "entropy_weight": 0.0,
        "probability_bound": 1.0,
        "curriculum": 0.0,
        "gate_learning_rate": 1e-4,
        "gate_weight_decay": 5e-5,
    },
    # Its rate is fixed, so the budget must be what that costs. Sampled to the end, with as much noise, and predictors that learn
    # a hundred times as fast as a body at 1e-4, as published: slower ones have hardly learned after a short tuning.
    "dynamicvit": {
        "objective": "rate",
        "freeze_gates_at": 1.0,
        "gate_noise_start": 1.0,
        "gate_noise_end": 1.0,
        "gate_learning_rate": 1e-2,
    },
    # From the first step on as in use; its numbers are fixed, too.
    "cropr": {"objective": "auxiliary", "freeze_gates_at": 1.0, "gate_learning_rate": 1e-2},
    # They begin at the budget: led there from open gates, most of a training would pass before they drop anything. Nothing
    # is sampled: what a threshold keeps is what is trained, as published.
    "avit": {**_ORDERED, "gate_noise_start": 0.0, "gate_noise_end": 0.0},
    "diffrate": {**_ORDERED, "gate_noise_start": 0.0, "gate_noise_end": 0.0, "gate_learning_rate": 1e-2},
    **dict.fromkeys(("evit", "topk", "ats", "tome", "random-tokens", "pitome"), _RULE),
}


def preset_of(config):
    """The name of the preset that made the gates of a `DynViTConfig`, None if none did.

    Where they began (`init_bias`) does not count: it is gone once they have learned, and has changed in the past.
    """
    gates = _without_start(config.gates or [])
    return next((name for name in PRESET_GATES if _without_start(preset_gates(name, config)) == gates), None)


def _without_start(gates):
    return [{key: value for key, value in entry.items() if key != "init_bias"} for entry in gates]


def preset_arguments(name):
    """Training arguments of preset `name`, as a new dict; none for a name or list of gates that is no preset."""
    return dict(PRESET_ARGUMENTS[name]) if name in PRESET_GATES else {}


def gate_facts(model):
    """Facts that rows and cards name a model by, JSON-ready: `gates`, `preset` (a name or None) and `learned`.

    `learned` is, for each kind of learnable gate, the largest distance of a score weight from its fresh value. At 0 the
    score reads nothing of the tokens: such a gate decides by its bias and, for patches, by their novelty.
    """
    names, learned = {kind: name for name, kind in GATES.items()}, {}
    for gate in model.learned_gates():
        moved = (gate.score.weight.detach().float().cpu() - gate.score.fresh()).abs().max().item()
        name = next((names[kind] for kind in type(gate).__mro__ if kind in names), type(gate).__name__)
        learned[name] = max(learned.get(name, 0.0), moved)
    return {"gates": model.config.gates, "preset": preset_of(model.config), "learned": learned}


def as_taught(args, method):
    """The arguments of a recipe for a method whose gates learn: by its preset, and to the end unless that says otherwise.

    A recipe for rules freezes gates before the first step, and would leave these as they begin: knowing nothing.
    """
    taught = {"freeze_gates_at": 1.0, "tuning_budgets": [], **preset_arguments(method)}
    if taught.get("objective", args.objective) != args.objective:
        taught["objective_options"] = None
    return replace(args, **taught)
