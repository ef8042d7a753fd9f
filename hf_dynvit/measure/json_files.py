"""JSON files: read with an error that names the file, written whole or not at all."""

import json
import os
from pathlib import Path


def read_json(path):
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged; both name it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON or of its encoding
        raise ValueError(f"{path} is damaged, it holds no JSON: {error}") from error


def write_json(path, content):
    """Write through a file beside it: a killed process leaves the old content, or none."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
