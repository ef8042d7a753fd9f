"""Claims about the structure: imports go downward, and what travels to the Hub is flat and complete."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

import hf_dynvit


PACKAGE = Path(hf_dynvit.__file__).parent
FILES = {path.stem: path for path in PACKAGE.glob("*.py")}

# From the ground up; the first four travel to the Hub. A new gate fits a pattern; a file without a floor stays at home.
FLOORS = (
    (
        *("configuration_dynvit", "cost", "gate", "attention", "embed", "rows", "prepack", "packed", "masked"),
        *("merge", "novelty", "compact", "upfront", "options"),
    ),
    ("gates", "gate_*", "preset_gates"),
    ("execute",),
    ("convert", "encode", "outputs", "pretrained", "modeling_dynvit"),
)
HOME = len(FLOORS)
TRAVELS_WITH = {"torch", "transformers", "huggingface_hub"}  # huggingface_hub: the check of the configuration's fields


def floor(name):
    if name == "__init__":
        return HOME + 1
    return next((level for level, names in enumerate(FLOORS) if any(fnmatch(name, n) for n in names)), HOME)


def imports(name):
    return [
        node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def siblings(name):
    """Files of the package that file `name` imports, absolute imports included."""
    found = set()
    for node in imports(name):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if isinstance(node, ast.ImportFrom) and node.level and not node.module:
            modules = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {module.split(".")[0] for module in modules}
        else:
            found |= {
                (module.split(".") + ["__init__"])[1] for module in modules if module.split(".")[0] == "hf_dynvit"
            }
    return found


TRAVELLING = sorted(name for name in FILES if floor(name) < HOME)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_never_go_up(name):
    above = {other for other in siblings(name) if floor(other) > floor(name)}
    assert not above, f"{name} (floor {floor(name)}) imports {above}"


def test_imports_have_no_circles():
    graph = {name: siblings(name) for name in FILES}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these import each other in a circle: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_travelling_file_needs_only_torch_transformers_and_flat_siblings(name):
    for node in imports(name):
        if isinstance(node, ast.ImportFrom) and node.level:
            flat = node.level == 1 and node.module and "." not in node.module
            assert flat, f"{name}.py, line {node.lineno}: write `from .name import Thing`"
            continue
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        outside = {module.split(".")[0] for module in modules} - TRAVELS_WITH - sys.stdlib_module_names
        assert not outside, f"{name}.py imports {outside}, which a user of the Hub model may not have"


def test_what_travels_is_exactly_what_the_model_needs():
    closure = {Path(file).stem for file in get_relative_import_files(FILES["modeling_dynvit"])}
    assert closure | {"modeling_dynvit"} == set(TRAVELLING)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_opens_with_a_sentence_that_says_what_it_is_for(name):
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text()))
    assert docstring and docstring.split("\n\n")[0].rstrip().endswith((".", ":"))
