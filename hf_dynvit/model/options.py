"""What values the options of gates may have; others are refused by name."""

import math


WIDEST = 65_536  # of a value network


def _number(value):
    return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)


ALLOWED = {
    "init_bias": ("a finite number", _number),
    "tau": ("positive and finite", lambda value: _number(value) and value > 0),
    "threshold": ("in (0, 1)", lambda value: _number(value) and 0 < value < 1),
    "novelty": ("a finite number of at least 0", lambda value: _number(value) and value >= 0),
    "distance": ("a number above 0", lambda value: _number(value) and value > 0),
    "merged": ("an integer of at least 0", lambda value: type(value) is int and value >= 0),
    "keep": ("in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    "mass": ("in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    "top": ("an integer of at least 1", lambda value: type(value) is int and value >= 1),
    "samples": ("an integer of at least 1", lambda value: type(value) is int and value >= 1),
    "margin": ("a finite number", _number),
    "scale": ("a number above 0", lambda value: _number(value) and value > 0),
    "rate": ("in [0, 1]", lambda value: _number(value) and 0 <= value <= 1),
    "value_width": (f"an integer in 0..{WIDEST}", lambda value: type(value) is int and 0 <= value <= WIDEST),
    # Not what is merely true: "false" would be.
    **dict.fromkeys(("drop", "merge", "upfront", "by_rank"), ("True or False", lambda value: type(value) is bool)),
}


def check_options(gate, **options):
    """Refuse values that `options` of a gate, of those in `ALLOWED`, cannot have, with a ValueError that names them."""
    for name, value in options.items():
        allowed, fits = ALLOWED[name]
        if not fits(value):
            raise ValueError(f"{name} of {gate} must be {allowed}, got {value!r}")


def check_choice(gate, name, value, choices):
    """Refuse an option that is none of the words `choices`, with a ValueError that names it."""
    if not isinstance(value, str) or value not in choices:
        hint = (
            "; a scorer of your own has to be registered first: register_scorer, --plugin" if name == "score" else ""
        )
        raise ValueError(f"{name} of {gate} must be one of {sorted(choices)}, got {value!r}{hint}")
