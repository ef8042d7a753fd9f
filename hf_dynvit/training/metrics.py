"""Top-1, top-5 and mean cost, and the function a Trainer calls for them."""

import numpy as np


def top_accuracy(logits, labels, k=1):
    """Share of images whose label is among the k highest of logits (B, C); labels (B,)."""
    k = min(k, logits.shape[1])
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return float((best == labels[:, None]).any(1).mean())


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
    spent = {"cost": float(np.mean(cost)), **cost_spread(cost)}
    if labels.ndim == 2:
        return multi_label_metrics(logits, labels) | spent
    return {"accuracy": top_accuracy(logits, labels), "accuracy_top5": top_accuracy(logits, labels, 5), **spent}


def cost_spread(cost):
    """cost (B,) -> its standard deviation over the images, and its ends."""
    cost = np.asarray(cost, dtype=np.float64)
    return {"cost_std": float(cost.std()), "cost_min": float(cost.min()), "cost_max": float(cost.max())}
