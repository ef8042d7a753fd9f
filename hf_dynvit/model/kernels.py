"""Optional kernels for CPU: what merging and dropping do beside products, in three calls of C++ in place of a hundred of torch.

At one image of a small ViT those calls take as long as what merging saves. The source is compiled once, by the compiler of
the machine, when a model asks for it (`prepack(kernels=True)`); without it everything runs in plain PyTorch, which the
tests hold it to.
"""

import hashlib
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from .kernels_source import SOURCE


NAME = f"hf_dynvit_{hashlib.sha256(SOURCE.encode()).hexdigest()[:8]}"  # models from the Hub may carry another source
FLAGS = {"AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}
SERVED = (torch.float32, torch.bfloat16)
_operators = None


def load_kernels():
    """Compile the kernels, or take those compiled before; from then on they serve all models of this process.

    Raises:
        RuntimeError: a machine without a C++ compiler or ninja, or whose compiler fails.
    """
    global _operators
    if _operators is not None:
        return
    if hasattr(getattr(torch.ops, NAME), "take_out"):  # by another copy of this code, of a model from the Hub
        _operators = getattr(torch.ops, NAME)
        return
    try:
        _load_library()
    except (OSError, RuntimeError, ImportError) as error:
        raise RuntimeError(
            f"kernels need a C++ compiler and ninja (pip install ninja): {error}; without them leave out kernels=True"
        ) from error
    _operators = getattr(torch.ops, NAME)


def _load_library():
    """Compile in a folder of its own, and move what came of it: a compile that is killed leaves no lock and no half."""
    from torch.utils import cpp_extension  # takes a second, and needs setuptools

    capability = torch.backends.cpu.get_cpu_capability()
    flags = FLAGS.get(capability, []) + (["-fopenmp"] if sys.platform == "linux" else [])  # torch's own threads
    name = f"{NAME}_{platform.machine()}_{capability}".lower()  # machines that share a home may be of other kinds
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    library = (
        root / f"torch-{torch.__version__}" / f"{name}{cpp_extension.LIB_EXT}"
    )  # other torches have other headers
    if library.exists():
        with suppress(OSError):  # of another system
            torch.ops.load_library(library)
            return
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, ignore_cleanup_errors=True) as folder:
        cpp_extension.load_inline(
            name,
            [SOURCE.replace("LIBRARY_NAME", NAME)],
            extra_cflags=["-O3", *flags],
            build_directory=folder,
            is_python_module=False,
            no_implicit_headers=True,
        )
        (built,) = Path(folder).glob(f"*{cpp_extension.LIB_EXT}")
        with suppress(OSError):  # a system that moves no loaded library compiles again next time
            os.replace(built, library)


def kernels_loaded():
    """Whether they serve this process."""
    return _operators is not None


def kernels(like):
    """The compiled operators where they serve tensors as `like`, (..., D), is one; else None."""
    if _operators is None or like.device.type != "cpu" or like.dtype not in SERVED:
        return None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    return None if torch.compiler.is_compiling() or torch.jit.is_tracing() else _operators
