"""Where a number was measured: device, dtype, threads, seed, versions, commit and command, to travel with the number."""

import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch


PACKAGE = Path(find_spec("hf_dynvit").origin).resolve().parent
SOURCE_TREE = PACKAGE.parent
PACKAGES = ("torch", "transformers", "hf_dynvit")


def measured_on(device, dtype, seed=None):
    """What a measurement taken now depends on, as `report.Results` holds it; JSON-ready.

    Args:
        device, dtype: of torch, or their names. seed: of the run, None if nothing was drawn.
    """
    return {
        "device": device_name(device),
        "instructions": instructions(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "versions": versions(),
        "commit": commit_of_code(),
        "command": command_line(sys.orig_argv),
    }


def device_name(device):
    """The name of a processor as its vendor writes it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cpuinfo = Path("/proc/cpuinfo")  # of Linux alone
    found = re.search(r"^model name\s*:\s*(\S.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def instructions(device):
    """What a processor has for products: "AVX-512, bf16, AMX", "AVX2"; "compute capability 9.0"; None where unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return "compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    if device.type != "cpu":
        return None
    name = torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")
    has_bf16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # of 16 and of 8 bits
    return name + (", bf16" if has_bf16() else "") + (", AMX" if has_tiles() else "")


def versions():
    """Installed versions; a package that runs from its source tree without being installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


@cache
def commit_of_code():
    """`commit` of the code that runs, as it was when this was first asked: later the tree may be another one."""
    return commit(SOURCE_TREE)


def commit(tree):
    """Short hash of the commit checked out at `tree`, with "+changes" if its code differs; None if it is no checkout."""
    top = _git(tree, "rev-parse", "--show-toplevel")
    # A package installed below some other project's folder must not report that project's commit.
    if not top or Path(top).resolve() != Path(tree).resolve():
        return None
    head = _git(tree, "rev-parse", "--short", "HEAD")
    if not head:
        return None
    changed = _git(tree, "status", "--porcelain", "--", "*.py", "*.yaml")
    return f"{head}+changes" if changed else head


def _git(tree, *arguments):
    try:
        done = subprocess.run(["git", "-C", str(tree), *arguments], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line(arguments):
    """The command line to type again: the interpreter by its name, values of `--...token` blanked."""
    words, hide = [], False
    for word in arguments[1:]:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and name.lower().endswith("token")
        words.append(f"{name}=..." if secret and equals else "..." if hide else word)
        hide = secret and not equals
    return shlex.join(["python", *words])
