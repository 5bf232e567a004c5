"""The two-path form of IAKD: its loss, and that without hybrid paths it is the loss of the other methods."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from digit_training import fixed_batch
from references import kd, softmax, z_scores
from torch import nn

from iakd import models
from iakd.models.features import forward_features
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
HALF = {"kind": "uniform", "p0": 0.5, "student_only": 0.0}


def two_path(**settings: Any) -> dict[str, Any]:
    return {"iakd": {"form": "two_path", "schedule": HALF, "warmup": 0.0, **settings}}


def step_with_paths(training: Trainer, count: int = 1) -> int:
    loss = training.objective.losses["iakd"]
    return next(step for step in range(training.timeline.total) if len(loss.paths(step)) >= count)


def terms_and_logits(training: Trainer, step: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The terms of a step, and the logits of all its networks, computed apart: student, teacher and every path."""
    objective, batch = training.objective, fixed_batch(training)
    objective.train()
    with torch.no_grad():
        terms, student = objective(batch, step)
        teacher = objective.teacher(batch.images)
        paths = {}
        for path, count in objective.losses["iakd"].paths(step).items():
            of_student, of_teacher = objective.hybrid.prefixes([path])
            own = forward_features(objective.student, batch.images, of_student)
            taught = forward_features(objective.teacher, batch.images, of_teacher)
            paths[objective.hybrid.forward_path(batch.images, path, own, taught).double().numpy().tobytes()] = count
    logits = {"student": student.double().numpy(), "teacher": teacher.double().numpy(), "paths": paths}
    return {name: term.item() for name, term in terms.items()}, logits | {"labels": batch.labels.numpy()}


@pytest.mark.parametrize("expression", ["iakd+kd", "iakd+kd+standardize"])
@pytest.mark.parametrize("count", [1, 3])
def test_terms_are_their_formulas(make_training: Make, expression: str, count: int) -> None:
    options = two_path(paths_per_step=count, weight=0.6, label_weight=0.3, teacher_weight=0.7, temperature=2.0)
    training = make_training(expression, options=options)
    terms, seen = terms_and_logits(training, step_with_paths(training, min(count, 2)))
    y, rows = seen["labels"], len(seen["labels"])
    compared = z_scores if "standardize" in expression else np.asarray
    own = np.arange(rows), y
    expected = {
        "ce": -0.1 * np.log(softmax(seen["student"])[own]).mean(),
        "kd": 0.9 * kd(compared(seen["student"]), compared(seen["teacher"]), y, 4.0),
        "iakd_labels": 0.0,
        "iakd_teacher": 0.0,
    }
    for raw, drawn in seen["paths"].items():
        hybrid = np.frombuffer(raw).reshape(rows, -1)
        expected["iakd_labels"] -= 0.6 * drawn / count * 0.3 * np.log(softmax(hybrid)[own]).mean()
        expected["iakd_teacher"] += 0.6 * drawn / count * 0.7 * kd(compared(hybrid), compared(seen["teacher"]), y, 2.0)
    assert terms == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_seams_are_distances_from_the_teacher_s_features(make_training: Make) -> None:
    training = make_training("iakd+kd", options=two_path(weight=0.0, seam_weight=0.3))
    objective, batch = training.objective, fixed_batch(training)
    objective.train()
    loss = objective.losses["iakd"]
    with torch.no_grad():
        terms, _ = objective(batch, 0)
        specs = loss.student_features, loss.teacher_features
        own, other = (
            forward_features(net, batch.images, spec)
            for net, spec in zip((objective.student, objective.teacher), specs, strict=True)
        )
        distances = [
            np.mean(np.square((bridge(own.blocks[s]) - other.blocks[t]).double().numpy()))
            for bridge, s, t in zip(loss.bridges, (0, 1, 2), (1, 3, 5), strict=True)
        ]
    assert len(distances) == 3 and terms["iakd_seams"].item() == pytest.approx(0.3 * sum(distances), rel=1e-4)


def trained(make_training: Make, expression: str, options: dict[str, Any]) -> tuple[bytes, list[dict[str, Any]]]:
    training = make_training(expression, f"digits/students/{len(options)}{expression}", options, epochs=2)
    history, _ = training.fit()
    ignored = ("seconds", "cpu_seconds", "images_per_s", "p_")
    rows = [{name: value for name, value in row.items() if not name.startswith(ignored)} for row in history]
    return models.save_weights(training.objective.student), rows


@pytest.mark.parametrize("settings", [{"schedule": {"p0": 1.0}}, {"weight": 0.0}], ids=["p = 1", "γ = 0"])
@pytest.mark.parametrize("student_bn", ["batch", "shared", "separate"])
def test_without_hybrid_paths_it_is_the_loss_without_them_bit_for_bit(
    make_training: Make, settings: dict[str, Any], student_bn: str
) -> None:
    for expression in ("kd", "dkd+standardize", "at+kd"):
        plain = trained(make_training, expression, {})
        assert trained(make_training, f"iakd+{expression}", two_path(student_bn=student_bn, **settings)) == plain
    assert trained(make_training, "iakd", two_path(**settings)) == trained(make_training, "scratch", {})


def test_the_single_path_form_adds_no_term(make_training: Make) -> None:
    training = make_training("iakd", options={"iakd": {"schedule": {"p0": 0.3}}})
    loss = training.objective.losses["iakd"]
    assert not loss.paths(0) and not loss.active(0) and loss.graph_key(0) == () and loss.epoch_record(0) == {}
    training.objective.train()
    terms, _ = training.objective(fixed_batch(training), 0)
    assert set(terms) == {"ce"}


def test_the_student_s_own_path_is_trained_in_every_step(make_training: Make) -> None:
    """Its loss is the other method's, with that method's weight of the cross-entropy."""
    with_paths, plain = make_training("iakd+kd", options=two_path()), make_training("kd")
    step = step_with_paths(with_paths)
    results = []
    for training in (with_paths, plain):
        training.objective.train()
        terms, logits = training.objective(fixed_batch(training), step)
        results.append((terms["ce"], terms["kd"], logits))
        (terms["ce"] + terms["kd"]).backward()
    assert all(map(torch.equal, *results))
    for one, other in zip(with_paths.objective.student.parameters(), plain.objective.student.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_weight_grows_linearly(make_training: Make) -> None:
    warm, cold = (make_training("iakd+kd", options=two_path(warmup=share)) for share in (0.5, 0.0))
    for step in (step_with_paths(warm), 5, 14, 20):
        paths = cold.objective.losses["iakd"].paths(step)
        (slow, _), (full, _) = terms_and_logits(warm, step), terms_and_logits(cold, step)
        assert ("iakd_teacher" in slow) == bool(paths)
        if paths:
            assert slow["iakd_teacher"] == pytest.approx(min(1, (step + 1) / 15) * full["iakd_teacher"], rel=1e-4)


def test_prefixes_are_computed_once(make_training: Make) -> None:
    """A T→S path costs a suffix of the student, an S→T path one of the teacher."""
    for kind, teacher_calls in (("teacher_to_student", "none"), ("student_to_teacher", "suffix")):
        training = make_training("iakd+kd", options=two_path(paths=kind))
        objective, step = training.objective, step_with_paths(training)
        (path,) = objective.losses["iakd"].paths(step)
        calls = dict.fromkeys(("stem", "teacher", "copies"), 0) | {f"student {slot}": 0 for slot in range(3)}

        def count(module: nn.Module, name: str, calls: dict[str, int] = calls) -> None:
            module.register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

        count(objective.student.stem, "stem")
        count(objective.teacher.stem, "teacher")
        for slot, (block, branch) in enumerate(zip(objective.student.blocks, objective.hybrid.branches, strict=True)):
            count(block, f"student {slot}")
            count(branch.teacher, "copies")
        objective.train()
        objective(fixed_batch(training), step)
        assert calls["stem"] == calls["teacher"] == 1
        change = path.index(not path[0])
        expected = [1 + (path[slot] and slot >= change) for slot in range(3)]
        assert [calls[f"student {slot}"] for slot in range(3)] == expected
        assert calls["copies"] == (0 if teacher_calls == "none" else 3 - change)


def test_paths_share_a_teacher_that_normalises_by_the_batch(make_training: Make) -> None:
    """It is followed once, as far as the longest of the paths that start with it."""
    chosen = two_path(paths="teacher_to_student", teacher_bn="batch", paths_per_step=6)
    training = make_training("iakd+kd", options=chosen)
    objective, step = training.objective, step_with_paths(training, 2)
    paths = objective.losses["iakd"].paths(step)
    calls = dict.fromkeys(range(-1, 3), 0)
    parts = [objective.hybrid.teacher_ends["stem"], *(branch.teacher for branch in objective.hybrid.branches)]
    for slot, part in enumerate(parts, -1):
        part.register_forward_hook(lambda *_, slot=slot: calls.update({slot: calls[slot] + 1}))
    objective.train()
    objective(fixed_batch(training), step)
    longest = max(path.index(True) for path in paths)
    assert len(paths) == 2 and calls == {slot: int(slot < longest) for slot in range(-1, 3)}


def test_its_history_has_the_share_of_the_student_in_the_paths(make_training: Make) -> None:
    training = make_training("iakd+kd", options=two_path(paths_per_step=2))
    sampler = training.objective.losses["iakd"].sampler
    record = training.objective.epoch_record(3)
    for slot in range(3):
        assert record[f"p_planned_{slot}"] == 0.5
        assert record[f"p_drawn_{slot}"] == pytest.approx(sampler.drawn(3)[:, :, slot].mean(), abs=1e-6)


def test_steps_with_the_same_paths_share_a_graph(make_training: Make) -> None:
    """One during the warm-up, when the weight is a number on the device, and one after it."""
    training = make_training("iakd+kd", options=two_path(paths="teacher_to_student", warmup=0.2))
    training.objective._outputs = None  # without the cache, whose reads cannot be recorded
    total = training.timeline.total
    keys = [training.objective.graph_key(step) for step in range(total)]
    paths = [training.objective.losses["iakd"].paths(step) for step in range(total)]
    warm = round(0.2 * total)
    parts = range(warm - 1), range(warm - 1, total)
    for part in parts:
        assert all((keys[i] == keys[j]) == (paths[i] == paths[j]) for i in part for j in part)
    assert not {keys[step] for step in parts[0]} & {keys[step] for step in parts[1]}
    assert len(set(keys[warm:])) == 2  # L − 1
