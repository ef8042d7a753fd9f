"""A model becomes a graph of OpenVINO or ONNX, in a file."""

import torch

from ..model.configuration_dynvit import pair
from .quantize import quantize_onnx, quantize_openvino
from .stream import Stream


OPSET = 23  # the first with an Attention of its own
STEP = (
    16  # OpenVINO compiles a kernel for each number of tokens, so few numbers: with 32 it took as long, and pads more
)
MOST_IMAGES = 4096  # of a batch


def write_openvino(model, shape, file, many, quantize, calibration):
    """An OpenVINO file with the inputs pixel_values and the outputs logits and cost.

    Args:
        model: in evaluation mode, as `Stream` takes it. shape: (channels, height, width) of images. many: for any number of
            images at a time. quantize, calibration: as in `export`.
    """
    import openvino

    graph = openvino.convert_model(
        _program(Stream(model, step=STEP, many=many, given=given_size(model, shape)), shape)
    )
    graph.reshape([-1 if many else 1, *shape])
    graph.input(0).get_tensor().set_names({"pixel_values"})
    for index, name in enumerate(("logits", "cost")):
        graph.output(index).get_tensor().set_names({name})
    if quantize:
        graph = quantize_openvino(graph, model, calibration)
    openvino.save_model(graph, file, compress_to_fp16=False)


def write_onnx(model, shape, file, many, quantize, calibration):
    """An ONNX file; the rest as `write_openvino`."""
    program = torch.onnx.export(
        _program(Stream(model, square=True, many=many, given=given_size(model, shape)), shape),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixel_values"],
        output_names=["logits", "cost"],
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort, torch.ops.aten.where.self: _where},
        verbose=False,
    )
    program.save(file)
    if quantize:
        quantize_onnx(file, model, calibration)


def given_size(model, shape):
    """The size of images (channels, height, width) that the graph has to resize; None: it is the model's."""
    resolution = model.config.resolution
    return None if resolution is None or pair(resolution) == tuple(shape[1:]) else tuple(shape[1:])


def _program(stream, shape):
    """The exported program of a `Stream`."""
    if not stream.many:
        return torch.export.export(stream.eval(), (torch.zeros(1, *shape),))
    images = torch.export.Dim("images", min=1, max=MOST_IMAGES)
    return torch.export.export(stream.eval(), (torch.zeros(3, *shape),), dynamic_shapes=({0: images},))


def _stable_sort(self, stable=True, dim=-1, descending=False):
    """aten::sort.stable: of equal values TopK finds the first ones first."""
    from onnxscript import opset23 as op

    size = op.Reshape(op.Gather(op.Shape(self), dim, axis=0), op.Constant(value_ints=[1]))
    return op.TopK(self, size, axis=dim, largest=descending, sorted=True)


def _where(condition, self, other):
    """aten::where.self; ONNX Runtime has no Where of bools."""
    from onnxscript import opset23 as op

    if self.dtype is None or self.dtype.name != "BOOL":
        return op.Where(condition, self, other)
    return op.Or(op.And(condition, self), op.And(op.Not(condition), other))
