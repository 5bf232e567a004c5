"""Every metric against numbers computed by hand or by another library in float64."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score

from iakd.errors import RunFailed
from iakd.evaluation import metrics
from iakd.evaluation.metrics import classification_metrics


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 400)
    logits = rng.normal(0, 2, (400, 7)).astype(np.float32)
    logits[np.arange(400), labels] += 1.5
    return logits, labels


def test_against_other_libraries(sample):
    logits, labels = sample
    found = classification_metrics(logits, labels)
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=1), abs=1e-12)
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5), abs=1e-12)
    reference = torch.nn.functional.cross_entropy(torch.tensor(logits, dtype=torch.float64), torch.tensor(labels))
    assert found["nll"] == pytest.approx(reference.item(), rel=1e-12)
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(7))
    assert found["confusion"] == matrix.tolist()
    assert found["per_class_top1"] == pytest.approx((100 * matrix.diagonal() / matrix.sum(1)).tolist())
    assert found["n"] == 400 and found["support"] == np.bincount(labels).tolist()
    predicted = logits.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_always_answering_the_largest_class_is_seen_through():
    labels = np.repeat([0, 1, 3], [90, 8, 2])  # class 2 has no images, and one is taken for it
    logits = np.tile([4.0, 1.0, 2.0, 1.0], (100, 1))
    found = classification_metrics(logits, labels)
    assert (found["top1"], found["balanced_accuracy"]) == pytest.approx((90, 100 / 3))
    assert found["macro_f1"] == pytest.approx(100 * (2 * 0.9 / 1.9) / 3) and found["support"] == [90, 8, 0, 2]
    logits[0, 2] = 9
    found = classification_metrics(logits, labels)
    assert found["balanced_accuracy"] == pytest.approx(100 * (89 / 90) / 3)


def test_ece_against_its_definition(sample):
    logits, labels = sample
    p = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    confidence, correct = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for m in range(1, 16):  # Guo et al. 2017: the bins are ((m-1)/15, m/15]
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert classification_metrics(logits, labels)["ece"] == pytest.approx(expected, rel=1e-12)


def test_ece_by_hand():
    # two images at confidence 0.9, one right: gap 0.4; two at 0.6, both right: gap 0.4
    bins = metrics.calibration(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True]))
    assert metrics.ece(bins) == pytest.approx(0.4)
    assert bins["n"][13] == 2 and bins["top1"][13] == 0.5
    assert bins["n"][8] == 2 and bins["confidence"][8] == pytest.approx(0.6)  # a bin is closed above: 9/15
    assert bins["confidence"][0] is None


def test_confident_and_right_is_calibrated():
    bins = metrics.calibration(np.ones(5), np.ones(5, dtype=bool))
    assert metrics.ece(bins) == 0.0 and bins["n"][-1] == 5


def test_tied_logits_go_to_the_lower_class():
    logits = np.zeros((6, 6))
    labels = np.arange(6)
    found = classification_metrics(logits, labels)
    assert metrics.ranks(logits, labels).tolist() == [0, 1, 2, 3, 4, 5]
    assert found["top1"] == pytest.approx(100 / 6) and found["top5"] == pytest.approx(500 / 6)
    assert [row[0] for row in found["confusion"]] == [1] * 6  # top-1 and the confusion matrix agree


def test_fewer_than_five_classes():
    found = classification_metrics(np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), np.array([0, 2]))
    assert (found["top1"], found["top5"]) == (50.0, 100.0)


def test_class_without_images():
    found = classification_metrics(np.eye(4)[[0, 0, 3]], np.array([0, 1, 3]))
    assert found["per_class_top1"] == [100.0, 0.0, None, 100.0]
    assert found["confusion"][2] == [0, 0, 0, 0]


def test_which_images_are_right(sample):
    logits, labels = sample
    found = classification_metrics(logits, labels)
    assert len(found["correct"]) == 68  # 400 bits are 50 bytes
    assert (metrics.unpack(found["correct"], 400) == (logits.argmax(1) == labels)).all()


@pytest.mark.parametrize("n", [1, 7, 8, 9, 847])
def test_flags_survive_packing(n):
    flags = np.random.default_rng(n).random(n) < 0.7
    text = metrics.pack(flags)
    assert (metrics.unpack(text, n) == flags).all()
    with pytest.raises(ValueError, match=f"for {n + 8} images"):
        metrics.unpack(text, n + 8)


def test_the_first_flag_is_the_highest_bit():
    assert metrics.pack(np.array([True, False, False, False, False, False, True, True, True])) == "g4A="  # 0x83 0x80


def test_huge_logits_do_not_overflow():
    found = classification_metrics(np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32), np.array([0, 0]))
    assert found["nll"] == pytest.approx(5e3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite(bad):
    with pytest.raises(RunFailed, match="not finite"):
        classification_metrics(np.array([[bad, 0.0]]), np.array([0]))
