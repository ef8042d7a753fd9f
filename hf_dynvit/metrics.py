"""Top-1, top-5 and mean cost as `evaluate` metrics that work offline, and the function a Trainer calls with them."""

import datasets
import evaluate
import numpy as np


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


def compute_metrics(prediction):
    """`EvalPrediction` with predictions (logits (B, C), cost (B,)) and label_ids (B,) -> accuracy, accuracy_top5, cost.

    Beside the mean cost its spread over the images: `cost_std`, `cost_min`, `cost_max`.
    """
    logits, cost = prediction.predictions
    labels = prediction.label_ids
    top = TopKAccuracy(keep_in_memory=True)
    return {
        "accuracy": next(iter(top.compute(predictions=logits, references=labels, k=1).values())),
        "accuracy_top5": next(iter(top.compute(predictions=logits, references=labels, k=5).values())),
        **MeanCost(keep_in_memory=True).compute(predictions=cost),
        **cost_spread(cost),
    }


def cost_spread(cost):
    """cost (B,) -> its standard deviation over the images, and its ends."""
    cost = np.asarray(cost, dtype=np.float64)
    return {"cost_std": float(cost.std()), "cost_min": float(cost.min()), "cost_max": float(cost.max())}
