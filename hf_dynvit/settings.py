"""Settings of a recipe: a YAML file whose keys can all be given, and overridden, on the command line."""

import dataclasses
import difflib
import json
import runpy
from argparse import SUPPRESS
from pathlib import Path

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .measure.provenance import commit_of_code


def parse_settings(argv, *dataclass_types, defaults=None, set_aside=None):
    """Parse `[FILE.yaml] [--key value | --key=value ...]`; the command line wins over the file, `--key` alone empties a list.

    `--plugin FILE.py` runs a file of one's own first, which registers gates, scorers, methods or others. It is for the command line
    alone: a YAML file from elsewhere runs nothing.

    Args:
        argv: the words after the program's name.
        dataclass_types: the dataclasses whose fields are the keys, and what their `flat_options` name beside them.
        defaults: function from the key-value words given so far to a dict of defaults for keys that they lack.
        set_aside: function from the file's words and the command line's to keys that do not count in the file.

    Returns:
        One instance of each dataclass.

    Raises:
        ValueError: a key that no dataclass has, named together with the keys that look like it, or a wrong value.
        FileNotFoundError: the YAML file or the plugin does not exist.
    """
    commit_of_code()  # before hours of work in which the tree may change
    argv = _without_plugins(list(argv))
    words, keys = [], _keys(dataclass_types)
    argv = [_underscored(word, keys) for word in argv]
    if argv and not argv[0].startswith("-"):
        file = argv.pop(0)
        words = yaml_words(file, keys)
        if set_aside is not None:
            words = yaml_words(file, keys, set_aside(words, argv))
    parser = _Parser(dataclass_types, allow_abbrev=False)
    for name, option in _flat_options(dataclass_types).items():
        kind = string_to_bool if isinstance(option.default, bool) else type(option.default)
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))  # as HfArgumentParser has them
        parser.add_argument(*spellings, dest=name, type=kind, default=SUPPRESS, help=option.metadata.get("help"))
    for action in parser._actions:
        action.nargs = "*" if action.nargs == "+" else action.nargs  # a list of the file can be emptied
    if defaults is not None:
        parser.set_defaults(**defaults(words + argv))
    namespace, unknown = parser.parse_known_args(words + argv)
    if unknown:
        key = unknown[0].partition("=")[0]
        if not key.startswith("--"):
            raise ValueError(f"{key!r} belongs to no key: write --key {key}, and the YAML file first")
        raise ValueError(_unknown(key.removeprefix("--"), "the command line", keys))
    given = vars(namespace)
    return [kind(**{key: given[key] for key in _keys([kind]) if key in given}) for kind in dataclass_types]


def _without_plugins(argv):
    """The words but for each `--plugin FILE.py`, which is run."""
    left = []
    while argv:
        word = argv.pop(0)
        key, equals, file = word.partition("=")
        if key != "--plugin":
            left.append(word)
            continue
        file = file if equals else argv.pop(0) if argv else ""
        if not Path(file).is_file():
            raise FileNotFoundError(f"plugin must be a file of Python, there is no {file!r}")
        runpy.run_path(file, run_name=Path(file).stem)
    return left


def _underscored(word, known):
    """A key that is spelled --with-hyphens as all others are; other words as they are."""
    key, equals, value = word.partition("=")
    spelled = key.removeprefix("--").replace("-", "_")
    return f"--{spelled}{equals}{value}" if key.startswith("--") and spelled in known else word


class _Parser(HfArgumentParser):
    """Raises instead of printing all keys, the mistake last."""

    def error(self, message):
        raise ValueError(f"{message} (--help lists all keys)")


def yaml_words(path, known, without=()):
    """The content of a YAML file as command-line words; what is null, or a key of `without`, is left at its default."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no settings file {str(path)!r}")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, it holds no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, it holds a {type(content).__name__}")
    block = content.get("objective_options")
    if isinstance(block, dict):  # as keys of their own, which the command line can override
        flat = {key: block.pop(key) for key in [*block] if key in known}
        content = {**{key: value for key, value in content.items() if key != "objective_options" or value}, **flat}
    words = []
    for key, value in content.items():
        if key not in known:
            raise ValueError(_unknown(str(key), path, known))
        if value is None or key in without:
            continue
        if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
            words += [f"--{key}", *map(str, value)]
        else:  # one word with "=", or a negative number would look like a key
            words.append(f"--{key}={json.dumps(value) if isinstance(value, (dict, list)) else value}")
    return words


def _keys(dataclass_types):
    own = [field.name for kind in dataclass_types for field in dataclasses.fields(kind) if field.init]
    return own + [*_flat_options(dataclass_types)]


def _flat_options(dataclass_types):
    """Name -> field of what dataclasses take beside their own fields, as `DynViTTrainingArguments` options of objectives."""
    known = {field.name for kind in dataclass_types for field in dataclasses.fields(kind)}
    flat = {name: option for kind in dataclass_types for name, option in getattr(kind, "flat_options", dict)().items()}
    return {name: option for name, option in flat.items() if name not in known}


def _unknown(key, place, known):
    close = difflib.get_close_matches(key.replace("-", "_"), known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"unknown key {key!r} in {place}{hint}"
