"""The pinned versions are complete: make installs them without looking for what they need."""

import importlib.util
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT


DEMO, DEV, DEPLOY = "constraints.txt", "constraints-dev.txt", "constraints-deploy.txt"


def pins(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in lines]


def needed(extra):
    """Names of all that hf_dynvit[extra] needs here, directly or through others; what torch needs it brings itself."""
    found, open_ends = set(), [("hf-dynvit", extra)]
    while open_ends:
        name, extra = open_ends.pop()
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            required = canonicalize_name(requirement.name)
            new = [(required, extra) for extra in ("", *requirement.extras) if (required, extra) not in found]
            found.update(new)
            open_ends += [(name, extra) for name, extra in new if name != "torch"]
    return {name for name, _ in found}


@pytest.mark.parametrize(
    ("extra", "files", "some"),
    [("demo", [DEMO], "matplotlib"), ("dev", [DEMO, DEV], "matplotlib"), ("deploy", [DEMO, DEV, DEPLOY], "openvino")],
)
def test_everything_that_is_needed_is_pinned(extra, files, some):
    pinned = {canonicalize_name(pin.name) for file in files for pin in pins(file)}
    if extra == "deploy" and importlib.util.find_spec("nncf") is None:
        pytest.skip("needs hf_dynvit[deploy]")
    assert {"torch", some} <= needed(extra) and not needed(extra) - pinned


def test_each_package_has_one_exact_version_and_the_demo_gets_nothing_of_the_tests():
    names = [canonicalize_name(pin.name) for file in (DEMO, DEV, DEPLOY) for pin in pins(file)]
    assert len(names) == len(set(names))
    assert all(
        [specifier.operator for specifier in pin.specifier] == ["=="]
        for file in (DEMO, DEV, DEPLOY)
        for pin in pins(file)
    )
    assert not {"pytest", "ruff", "pymoo", "ipykernel"} & {canonicalize_name(pin.name) for pin in pins(DEMO)}
