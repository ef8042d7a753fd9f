"""What values the options of gates may have; others are refused by name."""

WIDEST = 65_536  # of a value network
GREATEST = 3e38  # of float32
MOST_TOKENS = 1_048_576


def _number(value):
    return isinstance(value, (int, float)) and type(value) is not bool and -GREATEST <= value <= GREATEST


def _count(least):
    return f"an integer in {least}..{MOST_TOKENS}", lambda value: type(value) is int and least <= value <= MOST_TOKENS


ALLOWED = {
    "init_bias": ("a finite number of float32", _number),
    "tau": ("positive and finite in float32", lambda value: _number(value) and value > 0),
    "threshold": ("in (0, 1)", lambda value: _number(value) and 0 < value < 1),
    "novelty": ("a finite number of at least 0", lambda value: _number(value) and value >= 0),
    "distance": ("a number above 0", lambda value: _number(value) and value > 0),
    "merged": _count(0),
    "keep": ("in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    "mass": ("in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    "top": _count(1),
    "samples": _count(1),
    "margin": ("a finite number of float32", _number),
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
