"""int8 of exported graphs: the linear layers of the blocks, and of OpenVINO the patch embedding; all else stays as it was."""

import os

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)


def quantize_openvino(graph, model, calibration):
    """The graph with weights and activations of 8 bits, calibrated by nncf.

    Args:
        graph: an `openvino.Model`. calibration: pixel_values (images, channels, height, width).
    """
    os.environ.setdefault("NNCF_CI", "1")  # it would report its use over the network
    import nncf

    shapes = _shapes(model)
    kept = [node.friendly_name for node in graph.get_ordered_ops() if not _is_small(node, shapes)]
    return nncf.quantize(
        graph,
        nncf.Dataset([image[None] for image in np.asarray(calibration, dtype=np.float32)]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
    )


def _is_small(node, shapes):
    """Whether a node of OpenVINO's is a product with the weights of a linear layer of `shapes`, or what such a one needs."""
    if node.get_type_name() in ("Constant", "Parameter", "Result", "Convolution"):
        return True
    if node.get_type_name() != "MatMul":
        return False
    shape = node.input_value(1).get_partial_shape()
    return shape.is_static and tuple(shape.to_shape()) in shapes


def quantize_onnx(file, model, calibration=None):
    """The ONNX file with weights of 8 bits, in place.

    Args:
        calibration: pixel_values (images, channels, height, width), by whose activations those of later images are scaled
            ahead; None: they are scaled as they come.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    graph, shapes = onnx.load(file).graph, _shapes(model)
    sizes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    small = [node.name for node in products if sizes.get(node.input[1]) in shapes]
    given = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QInt8}
    if calibration is None:
        kept = [node.name for node in products if node.name not in small]
        kept += [f"{name}_MatMul" for name in kept]  # what becomes of a Gemm
        quantize_dynamic(file, file, nodes_to_exclude=kept, **given)
        return
    quantize_static(
        file,
        file,
        _reader(calibration),
        nodes_to_quantize=small,
        activation_type=QuantType.QUInt8,
        per_channel=True,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},  # the stream stays as wide as it was
        **given,
    )


def _reader(calibration):
    """The images (images, channels, height, width) one by one, as ONNX Runtime's calibration asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(np.asarray(calibration, dtype=np.float32))

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"pixel_values": image[None]}

    return Images()


def _shapes(model):
    """Shapes of the weights of linear layers in blocks, either way round, as far as no gate has one of the same shape."""
    gates = {tuple(weight.shape) for weight in model.gates.parameters()}
    blocks = [module for layer in model.host.layers(model.base_model) for module in layer.modules()]
    shapes = {tuple(module.weight.shape) for module in blocks if hasattr(module, "in_features")}
    if shared := sorted(shapes & gates):
        logger.warning(
            f"weights of the shapes {shared} stay in float32, those of blocks too: gates have some of the same"
        )
    shapes -= gates
    return shapes | {shape[::-1] for shape in shapes}
