"""No two files of the project share six lines that say the same thing."""

import ast
import re
from collections import defaultdict

from places import RECIPES, ROOT, TESTS


LINES = 6


def said(path):
    """The lines of a file that say something, without their indentation: imports and lone brackets do not."""
    text = path.read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    of_imports = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    return [line.strip() for number, line in lines if number not in of_imports and re.search(r"\w", line)]


def shared(paths):
    """Runs of `LINES` lines that stand in more than one of the files -> names of these files."""
    places = defaultdict(set)
    for path in paths:
        lines = said(path)
        for start in range(len(lines) - LINES + 1):
            places["\n".join(lines[start : start + LINES])].add(path.name)
    return {run: sorted(names) for run, names in places.items() if len(names) > 1}


def test_no_two_files_share_six_lines():
    files = [path for folder in (ROOT / "hf_dynvit", RECIPES, TESTS) for path in folder.rglob("*.py")]
    found = shared(files)
    assert not found, "\n\n".join(f"{' and '.join(names)}:\n{run}" for run, names in found.items())


def test_shared_lines_are_found_whatever_their_indentation_and_imports_do_not_count(tmp_path):
    run = [f"value_{number} = {number}" for number in range(LINES)]
    (tmp_path / "one.py").write_text("import json\n" + "\n".join(run))
    (tmp_path / "other.py").write_text("def inside():\n" + "\n\n".join(f"    {line}" for line in run))
    (tmp_path / "third.py").write_text("import json\n" + "\n".join(run[:-1]))
    files = sorted(tmp_path.iterdir())
    assert shared(files) == {"\n".join(run): ["one.py", "other.py"]}
    (tmp_path / "other.py").write_text("import json\n" * LINES + "\n".join(run[1:]))
    assert shared(files) == {}
