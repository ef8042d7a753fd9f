"""Prediction with an exported model: numpy and the runtime alone; this file also works where hf_dynvit is not installed.

Images run one by one, each as long as its own decisions want, or as a batch, where the model was exported for batches;
several streams run some at the same time.

Letters: B images, C classes.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


FILES = {"openvino": "model.xml", "onnx": "model.onnx"}


class Output(NamedTuple):
    """What a model gives for B images."""

    logits: np.ndarray  # float32 (B, C)
    cost: np.ndarray  # float32 (B,) multiply-accumulates spent / those of the dense model


class DynViTRuntime:
    """A model that `hf_dynvit.deploy.export` has written.

    Args:
        config, preprocessor: the content of config.json and preprocessor_config.json.
        run: function of a list of pixel_values (B, channels, height, width) that gives a pair of logits and cost for each.
        streams: how many of them it runs at the same time.
    """

    def __init__(self, config, preprocessor, run, streams=1):
        self.config, self.preprocessor, self._run, self.streams = config, preprocessor, run, streams

    @classmethod
    def from_pretrained(cls, folder, threads=None, streams=1):
        """Load a folder.

        Args:
            threads: of the CPU, for all streams together; None: what the runtime finds right.
            streams: images, or parts of a batch where it was exported for batches, that are computed at the same time. More
                of them raise the throughput.

        Raises:
            ValueError: no exported model, or numbers below 1. ImportError: its runtime is not installed.
        """
        folder = Path(folder)
        if streams < 1 or (threads is not None and threads < streams):
            raise ValueError(f"there must be a stream and a thread for each, got {streams} streams, {threads} threads")
        config, preprocessor = (_read(folder / name) for name in ("config.json", "preprocessor_config.json"))
        if "deploy" not in config:
            raise ValueError(
                f"{folder} holds no exported model: hf_dynvit.deploy.export or recipes/export.py makes one"
            )
        start = {"openvino": _openvino, "onnx": _onnx}[config["deploy"]["format"]]
        run = start(folder / FILES[config["deploy"]["format"]], threads, streams)
        return cls(config, preprocessor, run, streams)

    def __call__(self, pixel_values):
        """An `Output` of pixel_values (B, channels, height, width).

        Raises:
            ValueError: another shape.
        """
        pixel_values, shape = np.asarray(pixel_values, dtype=np.float32), self.config["deploy"]["shape"]
        if list(pixel_values.shape[1:]) != shape or not len(pixel_values):
            raise ValueError(f"pixel_values must be (images, {', '.join(map(str, shape))}), got {pixel_values.shape}")
        alone = self.config["deploy"]["batch"] == "one"
        parts = len(pixel_values) if alone else min(self.streams, len(pixel_values))
        logits, cost = zip(*self._run(np.array_split(pixel_values, parts)), strict=True)
        return Output(np.concatenate(logits), np.concatenate(cost))

    def predict(self, images, top_k=5):
        """Labels of a PIL image, or of a list of them, as transformers' pipeline gives them.

        Returns:
            For each image a list of at most `top_k` dicts with `label` and `score`, the best first; one list for one image.
        """
        alone = isinstance(images, Image.Image)
        logits = self(self.preprocess([images] if alone else images)).logits
        found = [self._labels(row, top_k) for row in logits]
        return found[0] if alone else found

    def preprocess(self, images):
        """PIL images -> pixel_values (B, channels, height, width), equal to those of transformers' processor."""
        mode = "RGB" if self.config["deploy"]["shape"][0] == 3 else "L"
        return np.stack([pixels(eight_bit(image, mode), self.preprocessor) for image in images])

    def _labels(self, logits, top_k):
        if self.config.get("problem_type") == "multi_label_classification":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.config["id2label"][str(index)], "score": float(scores[index])} for index in best]


def eight_bit(image, mode):
    """A PIL image in `mode`; of 16 bits the upper eight, which PIL's own conversion of grey would cut off."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert(mode)


def pixels(image, preprocessor):
    """An 8-bit PIL image -> float32 (channels, height, width), by a preprocessor_config.json: resize, crop, scale, normalize."""
    if preprocessor.get("do_resize"):
        image = image.resize(_size(image, preprocessor["size"]), preprocessor["resample"])
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values  # (height, width, channels)
    if preprocessor.get("do_center_crop"):
        height, width = preprocessor["crop_size"]["height"], preprocessor["crop_size"]["width"]
        top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
        values = values[top : top + height, left : left + width]
    if preprocessor.get("do_rescale"):
        values = values.astype(np.float64) * preprocessor["rescale_factor"]
    values = values.astype(np.float32)
    if preprocessor.get("do_normalize"):
        mean, std = (np.array(preprocessor[name], dtype=np.float32) for name in ("image_mean", "image_std"))
        values = (values - mean) / std
    return values.transpose(2, 0, 1)


def _size(image, size):
    """(width, height) that an image is resized to."""
    if size.get("height"):
        return size["width"], size["height"]
    short = min(image.size)
    return tuple(
        size["shortest_edge"] if side == short else int(size["shortest_edge"] * side / short) for side in image.size
    )


def _read(file):
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no exported model: it has no {file.name}")
    return json.loads(file.read_text())


def _onnx(file, threads, streams):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = max(1, (threads or 0) // streams), 1
    if threads is None and streams == 1:
        options.intra_op_num_threads = 0
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.x64quantprecision", "1"
    )  # no sums of int8 that overflow, on an older CPU
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def one(image):
        return session.run(["logits", "cost"], {"pixel_values": image})

    if streams == 1:
        return lambda images: [one(image) for image in images]
    pool = ThreadPoolExecutor(streams)
    return lambda images: list(pool.map(one, images))


def _openvino(file, threads, streams):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams}  # sixteen bits would decide otherwise
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(file, "CPU", settings), streams)

    def run(images):
        found = [None] * len(images)

        def keep(request, index):
            found[index] = tuple(request.get_output_tensor(output).data.copy() for output in (0, 1))

        queue.set_callback(keep)
        for index, image in enumerate(images):
            queue.start_async({0: image}, index)
        queue.wait_all()
        return found

    return run
