"""How the gates of each preset are taught: defaults for `DynViTTrainingArguments`, which anything given overrides."""

from .preset_gates import PRESET_GATES, preset_gates


PRESET_ARGUMENTS = {
    # The gates have an order from the start: they are not led to the budget, and learn slowly, so as not to lose it.
    "adavit": {"objective": "cost", "calibrate_first": True, "gate_learning_rate": 1e-3},
    "adavit-official": {"objective": "usage", "usage_target": 0.5, "usage_weight": 2.0, "gate_noise_end": 1.0},
    "layerskip": {
        "objective": "reinforce",
        "reward": "correct",
        "returns": "to-go",
        "baseline": "value",
        "cost_weights": "uniform",
        "price": 0.0,
        "price_gain": 20.0,
        "budget_ramp": 0.15,
        "entropy_weight": 0.01,
        "probability_bound": 0.95,
        "curriculum": 0.1,
        "gate_learning_rate": 2e-3,
    },
    # The public code as it is, its defects included: `returns="dynavit"` normalises over the layers of one image,
    # which leaves the sign of the reward alone; no entropy, bound or curriculum; the price never changes.
    "layerskip-dynavit": {
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
        "calibration_images": 0,
    },
}


def preset_of(config):
    """The name of the preset that made the gates of a `DynViTConfig`, None if none did."""
    return next((name for name in PRESET_GATES if preset_gates(name, config) == config.gates), None)


def preset_arguments(name):
    """Training arguments of preset `name`, as a new dict; none for a name or list of gates that is no preset."""
    if name in PRESET_GATES:
        return dict(PRESET_ARGUMENTS[name])
    return {}
