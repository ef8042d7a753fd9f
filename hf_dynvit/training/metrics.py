"""Top-1, top-5 and mean cost as `evaluate` metrics that work offline, and the function a Trainer calls with them."""

import sys
from pathlib import Path

import datasets
import numpy as np


# A script that has an evaluate.py of its own beside it, as those of recipes/ have, would hide the library of that name.
everywhere = sys.path
sys.path = [path for path in everywhere if not (Path(path) / "evaluate.py").is_file()]
try:
    import evaluate
finally:
    sys.path = everywhere


class TopKAccuracy(evaluate.Metric):
    """Share of images whose label is among the k highest scores."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, k=1):
        scores, labels = np.asarray(predictions), np.asarray(references)
        k = min(k, scores.shape[1])
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return {f"top{k}" if k > 1 else "accuracy": float((best == labels[:, None]).any(1).mean())}


class MeanCost(evaluate.Metric):
    """Mean of multiply-accumulates spent / multiply-accumulates of the dense model."""

    def _info(self):
        features = {"predictions": datasets.Value("float32")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions):
        return {"cost": float(np.mean(predictions))}


def multi_label_metrics(logits, labels):
    """logits, labels (B, C), labels 1 or 0 -> accuracy (all labels of an image right), micro F1, mean average precision.

    An image has a label where its logit is positive. The mean is over labels that some image has.
    """
    true, said = labels > 0.5, logits > 0
    right, named = (said & true).sum(), said.sum() + true.sum()
    order = np.argsort(-logits, axis=0, kind="stable")
    hits = np.take_along_axis(true, order, axis=0)  # (B, C), the highest logit first
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    found = hits.sum(0)
    average = (precision * hits).sum(0)[found > 0] / found[found > 0]
    return {
        "accuracy": float((said == true).all(1).mean()),
        "f1_micro": float(2 * right / named) if named else 1.0,
        "mean_average_precision": float(average.mean()) if len(average) else 0.0,
    }


def compute_metrics(prediction):
    """`EvalPrediction` with predictions (logits (B, C), cost (B,)) -> accuracy, accuracy_top5, cost.

    Beside the mean cost its spread over the images: `cost_std`, `cost_min`, `cost_max`.
    Labels are (B,), or (B, C) for multi-label problems, which `multi_label_metrics` measures. With
    `eval_do_concat_batches=False` both are lists of batches.
    """
    predictions, labels = prediction.predictions, prediction.label_ids
    if isinstance(predictions, list):
        predictions = [np.concatenate(part) for part in zip(*predictions, strict=True)]
        labels = np.concatenate(labels)
    logits, cost = predictions
    spent = MeanCost(keep_in_memory=True).compute(predictions=cost) | cost_spread(cost)
    if labels.ndim == 2:
        return multi_label_metrics(logits, labels) | spent
    top = TopKAccuracy(keep_in_memory=True)
    return {
        "accuracy": next(iter(top.compute(predictions=logits, references=labels, k=1).values())),
        "accuracy_top5": next(iter(top.compute(predictions=logits, references=labels, k=5).values())),
        **spent,
    }


def cost_spread(cost):
    """cost (B,) -> its standard deviation over the images, and its ends."""
    cost = np.asarray(cost, dtype=np.float64)
    return {"cost_std": float(cost.std()), "cost_min": float(cost.min()), "cost_max": float(cost.max())}
