"""Accuracy and calibration from logits, in float64 on the CPU, so that they are bit-identical on every run."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.errors import RunFailed

BINS = 15  # of confidence, as in Guo et al. 2017

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def classification_metrics(logits: NDArray[Any], labels: Labels) -> dict[str, Any]:
    """Return all metrics of one model on one split.

    `logits` (N, classes), `labels` (N,). In percent: `top1`, `top5` (100 with five classes or fewer),
    `balanced_accuracy` and `macro_f1` (means over the classes that have images) and `per_class_top1` (None for a class
    without images). `nll` in nats, `ece` in 0–1, `n` images, `support` the images of each class, `confusion` counts
    (row: true class, column: predicted), `calibration`: per bin of confidence `n`, and the means of `confidence` and
    `top1`, both 0–1, None in an empty bin. `correct`: which images are classified correctly, see `pack`.

    Raises RunFailed if a logit is not finite: such a model has no accuracy worth reporting.
    """
    if not np.isfinite(logits).all():
        raise RunFailed("the outputs of the model are not finite")
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
        **class_means(matrix),
        "n": len(labels),
        "support": matrix.sum(axis=1).tolist(),
        "per_class_top1": per_class_top1(matrix),
        "confusion": matrix.tolist(),
        "calibration": bins,
        "correct": pack(rank == 0),
    }


def class_means(matrix: Labels) -> dict[str, float]:
    """Return `balanced_accuracy` and `macro_f1` in percent: the means of recall and F1 over the classes with images.

    From a confusion matrix (row: true class), as scikit-learn does, which takes a second to import.
    """
    present = matrix.sum(axis=1) > 0
    right, support, predicted = matrix.diagonal()[present], matrix.sum(axis=1)[present], matrix.sum(axis=0)[present]
    recall, f1 = right / support, 2 * right / (support + predicted)
    return {"balanced_accuracy": 100.0 * float(recall.mean()), "macro_f1": 100.0 * float(f1.mean())}


def pack(flags: NDArray[np.bool_]) -> str:
    """Return flags (N,) as text: eight to a byte, the first one in the highest bit, and the bytes in base 64."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """Return the `n` flags in a text of `pack`. Raises ValueError if it holds another number of bytes."""
    content = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(content) != -(-n // 8):
        raise ValueError(f"{len(content)} bytes for {n} images")
    return np.unpackbits(content, count=n).astype(np.bool_)


def ranks(logits: Floats, labels: Labels) -> Labels:
    """Return the number of classes ranked before the true one, (N,).

    Of equal logits the class with the lower index comes first, as in argmax, so that top-1 and the confusion matrix
    agree and a constant model gains nothing from ties.
    """
    true = logits[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return ((logits > true) | ((logits == true) & lower_index)).sum(1)


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of the class probabilities, (N, classes)."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def confusion(predicted: Labels, labels: Labels, classes: int) -> Labels:
    """Return counts (classes, classes): row true, column predicted."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class_top1(matrix: Labels) -> list[float | None]:
    """Return the accuracy of each class in percent; None for a class without images."""
    return [100.0 * int(row[i]) / int(row.sum()) if row.sum() else None for i, row in enumerate(matrix)]


def calibration(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, list[Any]]:
    """Return mean confidence and accuracy in BINS equal bins of confidence, each open below and closed above."""
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
    """Return the expected calibration error (Guo et al. 2017, equation 3), 0–1.

    It is the gap between confidence and accuracy, averaged over the bins and weighted by their number of images.
    """
    gaps = (
        n * abs(top1 - confidence)
        for n, confidence, top1 in zip(bins["n"], bins["confidence"], bins["top1"], strict=True)
        if n
    )
    return sum(gaps) / sum(bins["n"])
