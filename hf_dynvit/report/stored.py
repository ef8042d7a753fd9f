"""The published results: a folder with a JSON file for each, from all of which the tables are rendered.

Adding a row is storing a file, removing it deleting the file; no other row is measured again.
"""

import json
import os
from pathlib import Path

from ..measure.files import read_json, write_text
from .schema import parse
from .traces import refuse_names, with_relative_paths


SAY_NOTHING = (
    "results",
    "front",
    "compare",
    "leaderboard",
    "runtimes",
    "deployment",
    "points",
)  # names that recipes give, each in the folder of its run


def stored_name(path):
    """What a file is called once it is stored, without ".json": as it is, or as its folder where its name says nothing."""
    path = Path(os.path.abspath(path))
    return path.parent.name if path.stem in SAY_NOTHING else path.stem


def by_name(paths):
    """Files in the order that their rows have, whatever the order they are given in."""
    return sorted(paths, key=lambda path: (stored_name(path), str(path)))


def take(paths, folder):
    """What is to be stored of files in a folder, not yet written.

    Returns:
        {name: content}; paths in it are relative to the working folder.

    Raises:
        ValueError: a file that `schema.read` refuses, tells of this machine, or would take the place of another one of
            these or of a stored one of another kind; it is named.
    """
    taken, sources = {}, {}
    for path in paths:
        name = stored_name(path)
        if name in taken:
            raise ValueError(f"{sources[name]} and {path} would both be stored as {name}.json: rename one of them")
        content = read_json(path)
        kind = parse(content, path, published=True).kind
        old = Path(folder) / f"{name}.json"
        if _kind(old) not in (None, kind):
            raise ValueError(f"{path} would replace {old}, which is of kind {_kind(old)!r}, not {kind!r}: rename it")
        taken[name], sources[name] = with_relative_paths(content, path, Path.cwd()), path
        refuse_names(taken[name], path)
    return taken


def _kind(file):
    content = read_json(file) if file.exists() else None
    return content.get("kind") if isinstance(content, dict) else None


def stored(folder, taken=None):
    """The results in a folder as objects, by name.

    Args:
        taken: of `take`: what takes the place of files in the folder, or comes beside them.

    Raises:
        ValueError: a file that `schema.read` refuses; it is named.
    """
    taken = taken or {}
    files = {path.stem: path for path in Path(folder).glob("*.json")}
    contents = {name: taken[name] if name in taken else read_json(files[name]) for name in files.keys() | taken}
    return [parse(contents[name], Path(folder) / f"{name}.json", published=True) for name in sorted(contents)]


def keep(folder, taken):
    """Write what was taken into a folder, which is made if there is none."""
    for name, content in taken.items():
        file = Path(folder) / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"{'replaced' if file.exists() else 'stored'} {file}")
        write_text(file, small(content))


def small(content):
    """The text of a file: a line a field, and a line a row of those that are tables, for small files and small diffs."""
    fields = (f"{_compact(field)}:{_rows(value)}" for field, value in content.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _rows(value):
    table = isinstance(value, list) and any(isinstance(row, dict) for row in value)
    return "[\n" + ",\n".join(map(_compact, value)) + "\n]" if table else _compact(value)


def _compact(value):
    return json.dumps(value, separators=(",", ":"))
