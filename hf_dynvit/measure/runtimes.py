"""The dense ViT in ONNX Runtime and OpenVINO, fp32 and int8: what one would otherwise deploy, timed beside the rest.

Needs `pip install hf_dynvit[deploy]`, which nothing else does. int8 of ONNX Runtime has weights of 8 bits and scales
activations as they come; int8 of OpenVINO is calibrated on images by nncf.
"""

import copy
import importlib.util
import operator
import os
import tempfile
import warnings
from pathlib import Path

import torch

from .dense import Reading


RUNTIMES = ("onnxruntime", "openvino")
PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
TOLERANCE = 1e-3  # of fp32 logits, relative to the largest one where that is above 1
ACCURACY_BATCH = 8
DENSE = "dense, PyTorch fp32"


def check_runtimes(names):
    """Refuse before any work what is unknown or not installed.

    Raises:
        ValueError: a name that is not of `RUNTIMES`. ImportError: a package that is missing.
    """
    for name in names:
        if name not in RUNTIMES:
            raise ValueError(f"runtimes must be of {list(RUNTIMES)}, got {name!r}")
        missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise ImportError(
                f"to time {name}, {missing} must be installed: pip install 'hf_dynvit[deploy]'; or leave it out"
            )


class Exported:
    """A dense ViT as an ONNX file and what is made of it, for sessions of any batch size.

    Args:
        vit: a `ViTForImageClassification` in evaluation mode; a copy of it is exported in float32.
        names: of `RUNTIMES`.
        images: (N, C, H, W) in float32 on CPU, to calibrate int8 on.

    Attributes:
        skipped: name of a way to run it -> why it is not there.
    """

    def __init__(self, vit, names, images):
        check_runtimes(names)
        self.names, self.skipped = tuple(names), {}
        self._folder = tempfile.TemporaryDirectory(prefix="hf_dynvit_runtimes_")
        folder = Path(self._folder.name)
        self.fp32, self.dynamic, self.calibrated = (folder / name for name in ("fp32.onnx", "int8.onnx", "int8.xml"))
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters and quantisers, which this package does not steer
            self.vit = copy.deepcopy(vit).float().cpu()
            self._export(images.shape[1:])
            if "onnxruntime" in names:
                self._quantize_weights()
            if "openvino" in names:
                self._calibrate(images.clone())

    def _export(self, shape):
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.onnx.export(
            Logits(Reading(self.vit)).eval(),
            (torch.zeros(2, *shape),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: batch}},
            verbose=False,
        )
        program.save(self.fp32)

    def _quantize_weights(self):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        products = ["MatMul", "Gemm"]  # integer convolutions are slower than the float one of the patches
        quantize_dynamic(self.fp32, self.dynamic, op_types_to_quantize=products, weight_type=QuantType.QInt8)

    def _calibrate(self, images):
        if importlib.util.find_spec("nncf") is None:
            self.skipped["OpenVINO int8"] = "nncf is not installed"
            return
        os.environ.setdefault("NNCF_CI", "1")  # it would report its use over the network
        import nncf
        import openvino

        model = openvino.Core().read_model(self.fp32)
        try:
            small = nncf.quantize(
                model,
                nncf.Dataset([image[None].numpy() for image in images]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(images),
            )
        except Exception as error:  # its own kinds; fp32 is timed all the same, and the file says why int8 is not
            self.skipped["OpenVINO int8"] = f"{type(error).__name__}: {error}"
            return
        openvino.save_model(small, self.calibrated, compress_to_fp16=False)

    def sessions(self, batch, dtype=torch.float32):
        """Name -> function of an array (batch, C, H, W) in float32 that gives logits (batch, classes), all on CPU.

        bfloat16 adds OpenVINO in it; ONNX Runtime has no such products on CPU.
        """
        ways = {
            "ONNX Runtime fp32": (self._onnxruntime, self.fp32),
            "ONNX Runtime int8": (self._onnxruntime, self.dynamic),
            "OpenVINO fp32": (self._openvino, self.fp32, "f32"),
            "OpenVINO bf16": (self._openvino, self.fp32, "bf16"),
            "OpenVINO int8": (self._openvino, self.calibrated, "f32"),
        }
        asked = {name: way for name, way in ways.items() if name.lower().replace(" ", "").startswith(self.names)}
        absent = set() if dtype == torch.bfloat16 else {"OpenVINO bf16"}
        absent |= set(self.skipped)
        return {name: make(batch, *given) for name, (make, *given) in asked.items() if name not in absent}

    def calls(self, batches):
        """What is to be timed: name -> function of the round's number, which takes the batches in turns.

        Args:
            batches: list of images (batch, C, H, W), of one size.

        Raises:
            RuntimeError: an fp32 session whose logits are not the model's.
        """
        arrays = [images.float().cpu().contiguous().numpy() for images in batches]
        sessions = self.sessions(len(arrays[0]), batches[0].dtype)
        self._check(sessions, arrays[0])
        return {
            name: lambda index, session=session: session(arrays[index % len(arrays)])
            for name, session in sessions.items()
        }

    def accuracy(self, images, most, dtype=torch.float32):
        """Name -> `accuracy` (top-1), `images` and `agrees` (share with the guess of the dense model in float32).

        Args:
            images: a data set of {"pixel_values", "labels"}. most: use the first so many, in whole batches.
            dtype: of the model beside it, as in `sessions`.
        """
        batch = min(ACCURACY_BATCH, len(images))
        count = max(1, min(most, len(images)) // batch) * batch
        sessions = {DENSE: self._dense, **self.sessions(batch, dtype)}
        guesses, labels = {name: [] for name in sessions}, []
        for start in range(0, count, batch):
            items = [images[index] for index in range(start, start + batch)]
            array = torch.stack([item["pixel_values"] for item in items]).float().numpy()
            labels += [int(item["labels"]) for item in items]
            for name, session in sessions.items():
                guesses[name] += session(array).argmax(-1).tolist()

        def share(guess, other):
            return sum(map(operator.eq, guess, other)) / count

        return {
            name: {"accuracy": share(guess, labels), "images": count, "agrees": share(guess, guesses[DENSE])}
            for name, guess in guesses.items()
        } | {name: {"skipped": reason} for name, reason in self.skipped.items()}

    def _dense(self, array):
        with torch.inference_mode():
            return self.vit(torch.from_numpy(array)).logits

    def _check(self, sessions, array):
        wanted = self._dense(array)
        for name in (name for name in sessions if name.endswith("fp32")):
            error = (sessions[name](array) - wanted).abs().max().item()
            allowed = TOLERANCE * max(1, wanted.abs().max().item())
            if not error <= allowed:
                raise RuntimeError(f"{name} computes other logits than PyTorch: off by {error:.2g} of {allowed:.2g}")

    def _onnxruntime(self, batch, file):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        options.add_free_dimension_override_by_name("batch", batch)
        options.add_session_config_entry("session.force_spinning_stop", "1")  # no threads that spin in others' turns
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda array: torch.from_numpy(session.run(["logits"], {"pixel_values": array})[0])

    def _openvino(self, batch, file, precision):
        import openvino

        core = openvino.Core()
        model = core.read_model(file)
        model.reshape([batch, *(size.get_length() for size in list(model.input(0).partial_shape)[1:])])
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(model, "CPU", settings | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
        request = compiled.create_infer_request()
        return lambda array: torch.from_numpy(request.infer({0: array}, share_inputs=True)[0])


class Logits(torch.nn.Module):
    """The logits alone, which is what a file of ONNX gives back."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, pixel_values):
        return self.vit(pixel_values).logits
