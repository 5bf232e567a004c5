"""Mutual learning: who learns what from whom, when, at which rate; and what becomes of the peer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_training import digit_images, fixed_batch
from references import kd, softmax, z_scores
from torch import Tensor, nn

from iakd import models
from iakd.config import parse
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.files import sha256_bytes
from iakd.models import save_weights
from iakd.stages import distill, import_teacher, prepare, teach
from iakd.training.trainer import Trainer
from iakd.training.validation import validate

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]


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


def peer_of(training: Trainer) -> models.Network:
    peer = training.objective.peer
    assert peer is not None
    return peer


def copies(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def moved(network: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True)]


@pytest.mark.parametrize(
    ("turns", "peers"),
    [
        ("steps", [False, True] * 6),
        ("epochs", [False] * 6 + [True] * 6),
        ("together", [None] * 12),
    ],
)
def test_in_turns_one_learns_and_the_other_rests(make_training: Make, turns: str, peers: list[bool | None]) -> None:
    """Also where other methods of the sum, which belong to the student, would have something to say."""
    options = {"mutual": {"turns": turns}, "label_smoothing": {"epsilon": 0.2}}
    training = make_training("mutual+label_smoothing+at+kd", options=options, epochs=2)
    student, peer = training.objective.student, peer_of(training)
    training.objective.train()
    for step, peer_s_turn in enumerate(peers):
        before = copies(student), copies(peer)
        training.train_step(fixed_batch(training, step))
        training.step += 1
        assert all(moved(student, before[0])) if not peer_s_turn else not any(moved(student, before[0]))
        assert not any(moved(peer, before[1])) if peer_s_turn is False else all(moved(peer, before[1]))
    assert training.step == training.timeline.total


@pytest.mark.parametrize("step", [0, 1])
def test_a_turn_s_terms_are_those_of_learning_together(make_training: Make, step: int) -> None:
    expression = "mutual+label_smoothing+sp"
    together = make_training(expression)
    alternate = make_training(expression, options={"mutual": {"turns": "steps"}})
    together.objective.train(), alternate.objective.train()
    batch = fixed_batch(together)
    both, one = together.objective(batch, step)[0], alternate.objective(batch, step)[0]
    assert set(one) == ({"ce", "mutual_kd", "sp"}, {"ce", "mutual_peer_ce", "mutual_peer_kd"})[step]
    assert all(torch.equal(term, both[name]) for name, term in one.items() if name != "ce")
    assert one["ce"] == (both["ce"] if step == 0 else 0)


def first_move(training: Trainer) -> tuple[Tensor, Tensor]:
    """How far the first step moves all parameters of the student and of the peer."""
    networks = training.objective.student, peer_of(training)
    before = [copies(network) for network in networks]
    training.objective.train()
    training.train_step(fixed_batch(training))
    student, peer = (
        torch.cat([(a.detach() - b).flatten() for a, b in zip(network.parameters(), old, strict=True)])
        for network, old in zip(networks, before, strict=True)
    )
    return student, peer


def test_the_peer_has_its_own_rate_on_the_same_schedule(make_training: Make, fit_until: FitUntil) -> None:
    plain = first_move(make_training("mutual", lr=0.1))
    slow = first_move(make_training("mutual", lr=0.1, options={"mutual": {"peer_lr": 0.01}}))
    assert torch.equal(plain[0], slow[0])
    torch.testing.assert_close(slow[1], 0.1 * plain[1], rtol=1e-2, atol=1e-6)
    assert slow[1].abs().max() > 0
    recipe: dict[str, Any] = {"lr": 0.1, "lr_schedule": {"kind": "cosine", "warmup": 0.2}, "clip_norm": 5.0}
    options = {"mutual": {"peer_lr": 0.01}}
    part = make_training("mutual", "digits/students/schedule", options, **recipe)
    fit_until(part, 8)
    resumed = make_training("mutual", "digits/students/schedule", options, **recipe)
    rates: list[tuple[float, ...]] = []
    resumed.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(tuple(group["lr"] for group in optimizer.param_groups))
    )
    resumed.fit()
    expected = [(resumed.timeline.lr(step), resumed.timeline.lr(step) / 10) for step in range(8, 30)]
    assert rates == [pytest.approx(pair) for pair in expected]
    assert rates[0][0] > 2 * rates[-2][0] > 0


def test_one_rate_is_one_parameter_group(make_training: Make) -> None:
    for options in ({}, {"mutual": {"peer_lr": 0.1}}):
        assert len(make_training("mutual", options=options, lr=0.1).optimizer.param_groups) == 1


def test_its_accuracy_is_recorded_whenever_the_student_s_is(make_training: Make) -> None:
    training = make_training("mutual", epochs=4, validate_every=2)
    history, metrics = training.fit()
    assert [bool(row.get("peer_val_top1") is not None) for row in history] == [False, True, False, True]
    own = validate(peer_of(training), digit_images(1200, 40), 40)
    assert metrics["peer_val_top1"] == history[-1]["peer_val_top1"] == own["val_top1"]
    assert metrics["peer_val_nll"] == history[-1]["peer_val_nll"] == pytest.approx(own["val_nll"])
    assert own["val_nll"] != pytest.approx(metrics["val_nll"])
    other, _ = make_training("kd", "digits/students/other", epochs=1).fit()
    assert not any(name.startswith("peer") for name in other[0])


def small_plan(teacher: dict[str, Any], *methods: str) -> Experiment:
    recipe = {"epochs": 2, "batch_size": 50}
    return plan_experiment(
        parse(
            {
                "teachers": [{"arch": "resnet14", "width": 4, **teacher}],
                "students": [{"arch": "resnet8", "width": 2}],
                "methods": {name: {} for name in methods},
                "teach": {"recipe": recipe},
                "distill": {"seeds": [0], "transfer": 100, "recipe": recipe},
                "compute": {"device": "cpu"},
            },
            "test",
        )
    )


def test_it_is_kept_beside_the_student_and_can_teach_another_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = small_plan({}, "mutual", "kd")
    prepare.run(experiment)
    teach.run(experiment, experiment.teachers[0])
    distill.run(experiment, *experiment.students)
    folder, other = (job.folder for job in experiment.students)
    assert not (other / "peer.safetensors").exists()
    content, record = (folder / run_dir.PEER).read_bytes(), json.loads((folder / run_dir.RUN).read_text())
    assert record["peer_sha256"] == sha256_bytes(content)
    assert content != run_dir.read_model(experiment.teachers[0].folder)[0]
    metrics = json.loads((folder / run_dir.METRICS).read_text())
    second = small_plan({"name": "taught", "checkpoint": str(folder / run_dir.PEER)}, "kd")
    import_teacher.run(second, second.teachers[0])
    taught = second.teachers[0].folder
    assert json.loads((taught / run_dir.METRICS).read_text())["val_top1"] == metrics["peer_val_top1"]
