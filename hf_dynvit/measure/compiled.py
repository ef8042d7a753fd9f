"""A module compiled as far as torch goes on its device: on CPU ahead of time, with weights that are constants of the program.

`torch.compile` gives the same products, but in every call it asks whether anything has changed, and starts each kernel from Python,
which shows where a model is small and images come one by one. A program made ahead of time does neither.
"""

import copy
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput


MODELS = 64  # of one class that may be compiled beside each other; torch gives up silently after 8


class Logits(nn.Module):
    """The logits alone of a module that gives an output of logits and more, or a tuple that begins with them."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pixel_values):
        out = self.module(pixel_values)
        return out.logits if hasattr(out, "logits") else out[0]


class Ahead:
    """A module on CPU, compiled at the first call with a shape of images and number of threads; its logits alone.

    Each program holds a copy of the weights, as they are when it is made. A C++ compiler is needed.

    Args:
        module: in evaluation mode, pixel_values (B, channels, height, width) -> an output with logits, or a tuple.
    """

    def __init__(self, module):
        self.module, self.programs = Logits(module).eval(), {}

    def __call__(self, images):
        """An `ImageClassifierOutput` of images on CPU; ValueError for others."""
        if images.device.type != "cpu":
            raise ValueError(f"the program is for images on CPU, got some on {images.device}")
        known = images.shape, images.dtype, torch.get_num_threads()  # the threads are in the program
        if known not in self.programs:
            self.programs[known] = self._compiled(images.shape, images.dtype)
        with torch.no_grad():  # the program asks for no strides, and takes those that it was made with
            return ImageClassifierOutput(logits=self.programs[known](images.contiguous()))

    def _compiled(self, shape, dtype):
        from torch import _inductor as inductor
        from torch._inductor.utils import fresh_cache

        settings = {"freezing": True, "freezing_discard_parameters": False}
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")  # of the compiler's own modules
            module, file = self.module, str(Path(folder) / "program.pt2")
            if any(parameter.is_inference() for parameter in module.parameters()):
                module = copy.deepcopy(module)  # tensors of inference_mode cannot be exported
            program = torch.export.export(module, (torch.zeros(shape, dtype=dtype),))
            with fresh_cache():  # which would keep a copy of the weights on disk
                inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=settings)
            return inductor.aoti_load_package(file)


class Tuned:
    """A module on CUDA, compiled once for each shape of images."""

    def __init__(self, module):
        self.model, self.shapes = torch.compile(module, dynamic=False, mode="max-autotune"), set()

    def __call__(self, images):
        if images.shape in self.shapes:
            return self.model(images)
        with torch._dynamo.config.patch(recompile_limit=MODELS):
            out = self.model(images)
        self.shapes.add(images.shape)
        return out


def compiled(module):
    """`Ahead` of a module on CPU, `Tuned` of one on another device."""
    return Ahead(module) if next(module.parameters()).device.type == "cpu" else Tuned(module)
