"""Results without traces of the machine: paths below the working folder become relative to it, others are refused.

The processor, its threads and the versions are part of a measurement; where somebody keeps files is not.
"""

import getpass
import platform
import re
from contextlib import suppress


STARTS = r"(?<![^\s\"'=:,;(\[{<>|])"  # where a path can start: the text's beginning, or after one of these
ABSOLUTE = re.compile(STARTS + r"(?:/[^\s/]|~[\w.-]*/|[A-Za-z]:[/\\]|\\\\|file:/)")
UPWARD = re.compile(r"(?<![\w.])\.\.(?=[/\\])")


def with_relative_paths(content, source, folder):
    """The content of JSON with each path below a folder relative to it.

    Args:
        source: where the content comes from, for errors. folder: an absolute `Path`.

    Raises:
        ValueError: a path that leads elsewhere, absolute or upward; source and field are named. Hub ids and URLs are none.
    """
    below = re.compile(STARTS + re.escape(str(folder)) + r"[/\\]+(?=[^\s\"'])")

    def relative(text, field):
        text = below.sub("", text)
        if ABSOLUTE.search(text) or UPWARD.search(text):
            raise ValueError(
                f"{source}: {field} leads out of the working folder {folder}, which is not to be published: {text!r}; name "
                "files by paths below it (links are fine), or run this in the folder where it was measured"
            )
        return text

    return _mapped(content, relative)


def refuse_names(content, source):
    """ValueError, with source and field, if JSON names this machine or its user; a user's Hub ids (user/model) may stay."""
    names = {platform.node(): "machine"}
    with suppress(OSError, KeyError, ImportError):  # a user id without a name
        names[getpass.getuser()] = "user"

    def refuse(text, field):
        for name, whose in names.items():
            if name and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w/-])", text):
                raise ValueError(f"{source}: {field} has the name of this {whose}, {name!r}, in it: {text!r}")
        return text

    _mapped(content, refuse)


def _mapped(content, change, field="it"):
    """The content of JSON with `change(text, field)` in place of each text; the keys stay."""
    if isinstance(content, dict):
        inner = "" if field == "it" else f"{field}."
        return {key: _mapped(value, change, f"{inner}{key}") for key, value in content.items()}
    if isinstance(content, list):
        return [_mapped(value, change, f"{field}[{index}]") for index, value in enumerate(content)]
    return change(content, field) if isinstance(content, str) else content
