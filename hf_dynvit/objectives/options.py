"""Options of objectives and agents: fields of a dataclass that say what they may be, and refuse the rest by name."""

import math
from dataclasses import field, fields


def option(default, help="", **limits):
    """A field with its help: true or false, or a number in [`least`, `most`], a whole one if its default is."""
    return field(default=default, metadata={"help": help, **limits})


def share(default, help=""):
    """An option that is a number in [0, 1]."""
    return option(default, help, most=1)


def at_least_one(default, help=""):
    """An option that is a number of at least 1."""
    return option(default, help, least=1)


def choice(*names, help=""):
    """An option that is one of `names`, the first unless given."""
    return option(names[0], help, choices=names)


def parse_options(owner, kind, given, defaults=None):
    """An instance of the dataclass `kind`.

    Args:
        owner: what the options belong to, in words. given: values by name; they count more than `defaults`.

    Raises:
        ValueError: an option that there is not, or a value of another type or out of range.
    """
    known = {option.name: option for option in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{owner} has no option {name!r}; its options are {sorted(known)}")
        wanted, fits = _what_fits(known[name], value)
        if not fits:
            raise ValueError(f"option {name} of {owner} must be {wanted}, got {value!r}")
    return kind(**{**(defaults or {}), **given})


def _what_fits(option, value):
    """What an option may be, in words, and whether the value is."""
    default, least, most = option.default, option.metadata.get("least", 0), option.metadata.get("most", math.inf)
    if isinstance(default, str):
        return f"one of {option.metadata['choices']}", value in option.metadata["choices"]
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    whole = isinstance(default, int)
    words = f" of at least {least}" if most == math.inf else f" in [{least}, {most:g}]"
    fits = type(value) in (int, float) and least <= value <= most and math.isfinite(value)
    return f"a {'whole ' if whole else ''}number{words}", fits and (not whole or value == int(value))
