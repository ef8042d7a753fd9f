"""Claims about the structure: imports go downward, and what travels to the Hub is flat and complete."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from places import TESTS
from transformers.dynamic_module_utils import get_relative_import_files

import hf_dynvit


PACKAGE = Path(hf_dynvit.__file__).parent
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}

# Rooms from the ground up; those that stand on one floor do not import each other.
ROOMS = (("model", "data"), ("measure",), ("objectives",), ("agents", "search"), ("training",), ("report", "deploy"))
TOP = len(ROOMS)  # what stands beside the rooms
# Inside the room that travels, from the ground up; a new gate or host fits a pattern.
STOREYS = (
    (
        "budgets",
        "cascade",
        "cls_attention",
        "configuration_dynvit",
        "decisions",
        "host",
        "kernels*",
        "options",
        "outputs",
        "packed_attention",
        "prepack",
        "rows",
    ),
    (
        "host_*",
        "bypass",
        "cost",
        "gate",
        "novelty",
        "resolution",
        "scorers",
        "amounts",
        "tokens",
        "matching",
        "merging",
        "compaction",
    ),
    ("gate_*", "gates", "preset_gates", "layer_packed", "layer_masked"),
    ("convert", "layer", "layer_reading", "layer_whole"),
    ("encoder",),
    ("modeling_dynvit",),
)
TRAVELS_WITH = {"torch", "transformers", "huggingface_hub"}  # huggingface_hub: the check of the configuration's fields


def room(name):
    return name.rpartition(".")[0]


def floor(name):
    """Number of a file's floor: its room's, above all of them for what has none."""
    return next(
        (level for level, rooms in enumerate(ROOMS) if name.split(".")[0] in rooms), TOP + (name == "__init__")
    )


def storey(name):
    """Number of a file's floor inside the room `model`."""
    return next(level for level, names in enumerate(STOREYS) if any(fnmatch(name, f"model.{n}") for n in names))


def imports(name):
    tree = ast.parse(FILES[name].read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def siblings(name):
    """Files of the package that file `name` imports, absolute imports included."""
    found = set()
    for node in imports(name):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            above = ["hf_dynvit", *name.split(".")][: -node.level] if node.level else []
            module = above + (node.module.split(".") if node.module else [])
            modules = [[*module, alias.name] for alias in node.names]
        for module in modules:
            if module[0] == "hf_dynvit":
                paths = [".".join(module[1:end]) for end in range(len(module), 0, -1)]
                paths += [f"{path}.__init__".removeprefix(".") for path in paths]
                found |= {next(path for path in paths if path in FILES)}
    return found - {name}


TRAVELLING = sorted(name for name in FILES if room(name) == "model" and name != "model.__init__")


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_never_go_up(name):
    for other in siblings(name):
        below = floor(other) < floor(name)
        assert below or room(other) == room(name), f"{name} (floor {floor(name)}) imports {other} ({floor(other)})"


@pytest.mark.parametrize("name", TRAVELLING)
def test_imports_inside_the_travelling_room_never_go_up(name):
    above = {other for other in siblings(name) if storey(other) > storey(name)}
    assert not above, f"{name} (floor {storey(name)}) imports {above}"


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
    closure = {Path(file).stem for file in get_relative_import_files(FILES["model.modeling_dynvit"])}
    assert {f"model.{name}" for name in closure | {"modeling_dynvit"}} == set(TRAVELLING)


def test_every_folder_is_a_room():
    rooms = {path.parent.name for path in FILES.values()} - {PACKAGE.name}
    assert rooms == {name for floor in ROOMS for name in floor}
    assert all(f"{name}.__init__" in FILES for name in rooms)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_opens_with_a_sentence_that_says_what_it_is_for(name):
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text()))
    assert docstring and docstring.split("\n\n")[0].rstrip().endswith((".", ":"))


def test_tests_stand_in_the_same_rooms():
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders == {name for floor in ROOMS for name in floor} | {"recipes"}
