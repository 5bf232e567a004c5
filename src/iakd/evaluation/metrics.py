"""Accuracy and calibration from logits, in float64 on the host, so that they are the same bits on every run."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.errors import RunFailed

BINS = 15  # of confidence, as Guo et al. 2017 use

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def measure(logits: NDArray[Any], labels: Labels) -> dict[str, Any]:
    """All metrics of one model on one set.

    `logits` (N, classes), `labels` (N,). Percent: `top1`, `top5` (with fewer than five classes, every class counts
    as named, so it is 100), `per_class_top1` (None for a class without images). `nll` in nats, `ece` in 0–1,
    `n` images, `confusion` counts (row: true class, column: predicted), `calibration`: per bin of confidence `n`,
    and the means of `confidence` and `top1`, both 0–1, None in an empty bin.

    Raises RunFailed where a logit is not finite: such a model has no accuracy worth reporting.
    """
    if not np.isfinite(logits).all():
        raise RunFailed("the model yields outputs that are not finite")
    logits = logits.astype(np.float64)
    rank = ranks(logits, labels)
    log_p = log_softmax(logits)
    predicted = logits.argmax(1)
    matrix = confusion(predicted, labels, logits.shape[1])
    bins = calibration(np.exp(log_p.max(1)), predicted == labels)
    return {
        "top1": 100.0 * float((rank == 0).mean()),
        "top5": 100.0 * float((rank < 5).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
        "ece": ece(bins),
        "n": len(labels),
        "per_class_top1": per_class_top1(matrix),
        "confusion": matrix.tolist(),
        "calibration": bins,
    }


def ranks(logits: Floats, labels: Labels) -> Labels:
    """How many classes come before the true one, (N,). Of equal logits the class with the lower index comes first,
    as argmax has it, so that top-1 and the confusion matrix agree and a constant model gains nothing by ties.
    """
    true = logits[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return ((logits > true) | ((logits == true) & lower_index)).sum(1)


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of the class probabilities, (N, classes)."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def confusion(predicted: Labels, labels: Labels, classes: int) -> Labels:
    """Counts (classes, classes): row true, column predicted."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class_top1(matrix: Labels) -> list[float | None]:
    """Percent of each class's images that are named right; None for a class without images."""
    return [100.0 * int(row[i]) / int(row.sum()) if row.sum() else None for i, row in enumerate(matrix)]


def calibration(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, list[Any]]:
    """Mean confidence and accuracy in BINS equal bins of confidence, each open below and closed above."""
    edges = np.linspace(0.0, 1.0, BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(bins, minlength=BINS)
    sums = {
        "confidence": np.bincount(bins, weights=confidence, minlength=BINS),
        "top1": np.bincount(bins, weights=correct.astype(np.float64), minlength=BINS),
    }
    means = {
        name: [float(total / n) if n else None for total, n in zip(values, count, strict=True)]
        for name, values in sums.items()
    }
    return {"n": count.tolist(), **means}


def ece(bins: dict[str, list[Any]]) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): the gap between confidence and accuracy, averaged
    over the bins by their share of the images; 0–1.
    """
    gaps = (
        n * abs(top1 - confidence)
        for n, confidence, top1 in zip(bins["n"], bins["confidence"], bins["top1"], strict=True)
        if n
    )
    return sum(gaps) / sum(bins["n"])
