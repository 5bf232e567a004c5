"""Mutual learning: who learns what from whom."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import fixed_batch
from references import kd, softmax, z_scores

from iakd.models import save_weights
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]


def test_terms_are_their_formulas(make_training: Make) -> None:
    options = {"mutual": {"temperature": 2.0, "ce_weight": 0.5, "kd_weight": 3.0}}
    for expression, seen in (("mutual", np.asarray), ("mutual+standardize", z_scores)):
        training = make_training(expression, options=options)
        method, batch = training.objective, fixed_batch(training)
        method.train()
        with torch.no_grad():
            terms, ours = method(batch, 0)
            theirs = next(iter(method.losses.values())).peer(batch.images)
        s, p = (logits.double().numpy() for logits in (ours, theirs))
        y = batch.labels.numpy()
        own = np.arange(len(y)), y
        expected = {
            "ce": -0.5 * np.log(softmax(s)[own]).mean(),
            "mutual_kd": 3 * kd(seen(s), seen(p), y, 2.0),
            "mutual_peer_ce": -0.5 * np.log(softmax(p)[own]).mean(),
            "mutual_peer_kd": 3 * kd(seen(p), seen(s), y, 2.0),
        }
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("term", "student", "peer"),
    [("ce", True, False), ("mutual_kd", True, False), ("mutual_peer_ce", False, True), ("mutual_peer_kd", False, True)],
)
def test_each_learns_from_its_own_terms_alone(make_training: Make, term: str, student: bool, peer: bool) -> None:
    training = make_training("mutual")
    training.objective.train()
    terms, _ = training.objective(fixed_batch(training), 0)
    terms[term].backward()
    assert all((p.grad is not None) == student for p in training.objective.student.parameters())
    assert all((p.grad is not None) == peer for p in next(iter(training.objective.losses.values())).peer.parameters())


def test_the_peer_starts_as_the_teacher_and_is_trained(make_training: Make) -> None:
    training = make_training("mutual", epochs=1)
    peer, before = next(iter(training.objective.losses.values())).peer, save_weights(training.objective.teacher)
    assert save_weights(peer) == before
    training.fit()
    after = peer.state_dict()
    for name, value in training.objective.teacher.state_dict().items():
        assert not torch.equal(after[name], value), name  # weights, and BatchNorm's statistics
    assert not any("peer" in name for name in training.objective.student.state_dict())


def test_smoothed_labels_are_the_peer_s_too(make_training: Make) -> None:
    options = {"label_smoothing": {"epsilon": 0.3}}
    plain, smoothed = make_training("mutual"), make_training("mutual+label_smoothing", options=options)
    batch = fixed_batch(plain)
    plain.objective.train(), smoothed.objective.train()
    with torch.no_grad():
        smoothed_terms = smoothed.objective(batch, 0)[0]
        logits = next(iter(plain.objective.losses.values())).peer(batch.images).double().numpy()
    target = np.full(logits.shape, 0.03)
    target[np.arange(len(logits)), batch.labels.numpy()] += 0.7
    expected = -np.mean(np.sum(target * np.log(softmax(logits)), axis=1))
    assert smoothed_terms["mutual_peer_ce"].item() == pytest.approx(expected, rel=1e-4)


def test_the_peer_runs_in_the_training_s_precision(make_training: Make) -> None:
    training = make_training("mutual", precision="bf16")
    seen: list[torch.dtype] = []
    next(iter(training.objective.losses.values())).peer.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    training.objective.train()
    with torch.autocast("cpu", torch.bfloat16):
        training.objective(fixed_batch(training), 0)
    training.objective(fixed_batch(training), 0)
    assert seen == [torch.bfloat16, torch.float32]
