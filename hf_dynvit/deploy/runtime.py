"""Prediction with an exported model: numpy and the runtime alone; this file also works where hf_dynvit is not installed.

Images run one by one, each as long as its own decisions want, or as a batch, where the model was exported for batches;
several streams run some at the same time.

Letters: B images, C classes.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps


ENDINGS = {"openvino": "xml", "onnx": "onnx"}


def files_of(format, looks):
    """Names of the graphs: one, or of a cascade one for each look."""
    names = ["model"] if looks == 1 else [f"look_{look}" for look in range(looks)]
    return [f"{name}.{ENDINGS[format]}" for name in names]


class Output(NamedTuple):
    """What a model gives for B images."""

    logits: np.ndarray  # float32 (B, C)
    cost: np.ndarray  # float32 (B,) multiply-accumulates spent / those of the dense model
    looks: np.ndarray  # int64 (B,) how many a cascade took; 1 of other models


class DynViTRuntime:
    """A model that `hf_dynvit.deploy.export` has written.

    Args:
        config, preprocessor: the content of config.json and preprocessor_config.json.
        runs: for each look a function of a list of pixel_values (B, channels, height, width) that gives a pair of logits and
            cost for each.
        streams: how many of them it runs at the same time.
    """

    def __init__(self, config, preprocessor, runs, streams=1):
        self.config, self.preprocessor, self._runs, self.streams = config, preprocessor, runs, streams

    @classmethod
    def from_pretrained(cls, folder, threads=None, streams=1, bfloat16=False, images=None):
        """Load a folder.

        Args:
            threads: of the CPU, for all streams together; None: what the runtime finds right.
            streams: images, or parts of a batch where it was exported for batches, that are computed at the same time. More
                of them raise the throughput.
            bfloat16: products in 16 bits, where OpenVINO has them on this CPU. Look at the agreement first: what is near a
                threshold is decided otherwise.
            images: of each stream's part of a batch, which is then of no other size: the runtime can plan for it, of a cascade
                its first look. None: any.

        Raises:
            ValueError: no exported model, numbers below 1, or 16 bits of another runtime. ImportError: its runtime is not
                installed.
        """
        folder = Path(folder)
        if streams < 1 or (threads is not None and threads < streams):
            raise ValueError(f"there must be a stream and a thread for each, got {streams} streams, {threads} threads")
        config, preprocessor = (_read(folder / name) for name in ("config.json", "preprocessor_config.json"))
        if "deploy" not in config:
            raise ValueError(
                f"{folder} holds no exported model: hf_dynvit.deploy.export or recipes/export.py makes one"
            )
        format, looks = config["deploy"]["format"], config["deploy"].get("looks", 1)
        if bfloat16 and format != "openvino":
            raise ValueError(f"only OpenVINO has products in 16 bits on a CPU, and {folder} is for {format}")
        start = {"openvino": partial(_openvino, bfloat16=bfloat16), "onnx": _onnx}[format]
        planned = [None if config["deploy"]["batch"] == "one" else images] + [None] * (looks - 1)
        files = zip(files_of(format, looks), planned, strict=True)
        runs = [start(folder / name, threads, streams, images=count) for name, count in files]
        return cls(config, preprocessor, runs, streams)

    def __call__(self, pixel_values, budget=None):
        """An `Output` of pixel_values (B, channels, height, width).

        Args:
            budget: of a cascade, the mean cost to aim at; None: that of the model.

        Raises:
            ValueError: another shape, or a budget that is out of reach.
        """
        pixel_values, shape = np.asarray(pixel_values, dtype=np.float32), self.config["deploy"]["shape"]
        if list(pixel_values.shape[1:]) != shape or not len(pixel_values):
            raise ValueError(f"pixel_values must be (images, {', '.join(map(str, shape))}), got {pixel_values.shape}")
        confidence = self._confidence(budget)
        logits, cost = self._look(self._runs[0], pixel_values)
        looks = np.ones(len(logits), dtype=np.int64)
        if len(self._runs) == 1:
            return Output(logits, cost, looks)
        first, *later = (np.float32(look.get("weight", 1.0)) for look in self.config["cascade"])
        total, weights = _log_softmax(logits) + np.log(first), np.full(len(logits), first)
        for run, weight in zip(self._runs[1:], later, strict=True):
            sure = np.exp(total.max(1)) / weights
            there = np.flatnonzero((looks == looks.max()) & ~(sure >= confidence))
            if not len(there):
                break
            logits, spent = self._look(run, pixel_values[there])
            total[there] = np.logaddexp(total[there], _log_softmax(logits) + np.log(weight))
            cost[there] += spent
            looks[there] += 1
            weights[there] += weight
        return Output(total - np.log(weights)[:, None], cost, looks)

    def _confidence(self, budget):
        """From which probability on an image needs no further look; beyond all without a table."""
        table, own = self.config.get("budget_confidences"), self.config["budget"]
        if budget is not None and not (table and table[0][0] <= budget <= table[-1][0]):
            reach = f"it is {table[0][0]} to {table[-1][0]}" if table else "this model has thresholds for one alone"
            raise ValueError(f"a budget of {budget} is out of reach: {reach}")
        return np.interp(own if budget is None else budget, *zip(*table, strict=True)) if table else np.inf

    def _look(self, run, pixel_values):
        """Logits and cost of one look."""
        alone = self.config["deploy"]["batch"] == "one"
        parts = len(pixel_values) if alone else min(self.streams, len(pixel_values))
        return map(np.concatenate, zip(*run(np.array_split(pixel_values, parts)), strict=True))

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
        if not self.preprocessor:
            raise ValueError(
                "this folder was exported without an image processor: give pixel_values to the model itself"
            )
        mode = "RGB" if self.config["deploy"]["shape"][0] == 3 else "L"
        return np.stack([pixels(eight_bit(image, mode), self.preprocessor) for image in images])

    def _labels(self, logits, top_k):
        problem = self.config.get("problem_type")
        if problem == "regression":
            scores = logits
        elif problem == "multi_label_classification" or len(logits) == 1:
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(_log_softmax(logits[None]))[0]
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.config["id2label"][str(index)], "score": float(scores[index])} for index in best]


def eight_bit(image, mode):
    """A PIL image in `mode`, upright as its camera says; of 16 bits the upper eight, which PIL's own conversion of grey would
    cut off."""
    image = ImageOps.exif_transpose(image)
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


def _log_softmax(logits):
    """(B, C), of the last."""
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _read(file):
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no exported model: it has no {file.name}")
    return json.loads(file.read_text())


def _onnx(file, threads, streams, images=None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = max(1, (threads or 0) // streams), 1
    if threads is None and streams == 1:
        options.intra_op_num_threads = 0
    options.log_severity_level = 3
    # No sums of int8 that overflow, on an older CPU; no threads that block others between images.
    for entry in ("session.x64quantprecision", "session.force_spinning_stop"):
        options.add_session_config_entry(entry, "1")
    if images is not None:
        options.add_free_dimension_override_by_name("images", images)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def one(image):
        return session.run(["logits", "cost"], {"pixel_values": image})

    if streams == 1:
        return lambda images: [one(image) for image in images]
    pool = ThreadPoolExecutor(streams)
    return lambda images: list(pool.map(one, images))


def _openvino(file, threads, streams, bfloat16=False, images=None):
    import openvino

    precision = "bf16" if bfloat16 else "f32"  # left to itself it would take 16 bits where the CPU has them
    settings = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": streams}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    graph = core.read_model(file)
    if images is not None:
        graph.reshape([images, *(size.get_length() for size in list(graph.input(0).partial_shape)[1:])])
    queue = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", settings), streams)

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
