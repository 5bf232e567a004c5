"""Losses between outputs in float64, written from their formulas: slow and plain."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def kl(p: Array, q: Array) -> float:
    """Mean over the rows of Σ p·log(p/q)."""
    return float(np.mean(np.sum(p * np.log(p / q), axis=1)))


def kd(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    return t**2 * kl(softmax(teacher / t), softmax(student / t))


def target_class(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    """T²·KL of (p_t, 1 − p_t)."""
    own = np.arange(len(labels)), labels
    pairs = [np.stack((p[own], 1 - p[own]), axis=1) for p in (softmax(teacher / t), softmax(student / t))]
    return t**2 * kl(*pairs)


def other_classes(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    """T²·KL of p_i/(1 − p_t) over i ≠ t."""
    shares = []
    for p in (softmax(teacher / t), softmax(student / t)):
        others = np.array([np.delete(row, label) for row, label in zip(p, labels, strict=True)])
        shares.append(others / others.sum(axis=1, keepdims=True))
    return t**2 * kl(*shares)


def correlation(a: Array, b: Array) -> float:
    """Pearson's, with the 1e-8 that the authors' code adds to the denominator."""
    a, b = a - a.mean(), b - b.mean()
    return float(np.dot(a, b) / (np.sqrt(np.dot(a, a) * np.dot(b, b)) + 1e-8))


def over_classes(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    p, q = softmax(teacher / t), softmax(student / t)
    return float(t**2 * (1 - np.mean([correlation(a, b) for a, b in zip(p, q, strict=True)])))


def over_images(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    p, q = softmax(teacher / t), softmax(student / t)
    return float(t**2 * (1 - np.mean([correlation(a, b) for a, b in zip(p.T, q.T, strict=True)])))


def gram_of_images(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    p, q = softmax(student / t), softmax(teacher / t)
    return sum((np.dot(p[i], p[j]) - np.dot(q[i], q[j])) ** 2 for i in range(len(p)) for j in range(len(p))) / len(p)


def gram_of_classes(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    p, q = softmax(student / t).T, softmax(teacher / t).T
    return float(np.sum((np.einsum("cb,db->cd", p, p) - np.einsum("cb,db->cd", q, q)) ** 2) / len(p))


def z_scores(x: Array) -> Array:
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)


def standardised_kd(student: Array, teacher: Array, labels: Labels, t: float) -> float:
    return kd(z_scores(student), z_scores(teacher), labels, t)
