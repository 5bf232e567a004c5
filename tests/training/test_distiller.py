"""The distiller: weights of a sum's cross-entropy, paths, records, keys of steps, and the student it leaves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iakd.config import Augment, Schedule
from iakd.data.loader import Batch, BatchFormat
from iakd.distillation.distiller import reestimate_statistics
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
HALF = Schedule(kind="uniform", p0=0.5, student_only=0.0)
NEVER = Schedule(kind="uniform", p0=0.0, student_only=0.0)


def first_batch(training: Trainer) -> Batch:
    return next(training.data.epoch(0, 0, BatchFormat(16)))


def terms_of(training: Trainer, step: int = 0) -> dict[str, float]:
    training.objective.train()
    return {name: term.item() for name, term in training.objective(first_batch(training), step)[0].items()}


def test_the_largest_weight_of_a_sum_s_cross_entropies_counts(make_training: Make) -> None:
    plain = terms_of(make_training("scratch"))["ce"]
    low, high = {"kd": {"ce_weight": 0.2}}, {"kd": {"ce_weight": 0.2}, "dist": {"ce_weight": 0.7}}
    assert terms_of(make_training("kd", options=low))["ce"] == pytest.approx(0.2 * plain)
    assert terms_of(make_training("kd+dist", options=high))["ce"] == pytest.approx(0.7 * plain)
    assert terms_of(make_training("iakd+kd", options=low, schedule=Schedule(p0=1.0)))["ce"] == pytest.approx(plain)


def test_the_largest_smoothing_counts(make_training: Make) -> None:
    for expression, own, recipe, expected in (
        ("label_smoothing", 0.3, 0.1, 0.3),
        ("label_smoothing", 0.1, 0.3, 0.3),
        ("scratch", None, 0.2, 0.2),
        ("scratch", None, 0.0, 0.0),
    ):
        options = {expression: {"epsilon": own}} if own else {}
        training = make_training(expression, options=options, label_smoothing=recipe)
        batch = first_batch(training)
        training.objective.train()
        terms, logits = training.objective(batch, 0)
        reference = F.cross_entropy(logits, batch.labels, label_smoothing=expected)
        assert terms["ce"].item() == pytest.approx(reference.item())


def test_in_the_single_path_form_labels_and_teacher_see_the_hybrid(make_training: Make) -> None:
    training = make_training("iakd+kd", schedule=NEVER)
    objective, batch = training.objective, first_batch(training)
    objective.train()
    hybrid = objective.hybrid(batch.images, [False] * 3)
    terms, logits = objective(batch, 0)
    assert torch.equal(logits, hybrid)
    log_student, log_teacher = (F.log_softmax(each / 4, dim=1) for each in (hybrid, objective.teacher(batch.images)))
    expected = 0.9 * 16 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
    assert terms["kd"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_losses_see_float32_logits_under_autocast(make_training: Make) -> None:
    objective = make_training("kd").objective
    seen = []
    objective.losses["kd"].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    objective.train()
    with torch.autocast("cpu", torch.bfloat16):
        objective(first_batch(make_training("kd")), 0)
    assert seen[0].student.logits.dtype == torch.bfloat16
    assert {seen[0].student_logits.dtype, seen[0].teacher_logits.dtype} == {torch.float32}


def test_the_record_of_an_epoch_is_the_mean_over_its_steps(make_training: Make) -> None:
    objective = make_training("iakd", schedule=Schedule(kind="linear", p0=1 / 3, slope=0.2), n=48).objective
    for epoch in (0, 1, 2):  # of three steps: thirds have six digits in the history
        record = objective.epoch_record(epoch)
        assert list(record) == [f"p_{kind}_{i}" for kind in ("planned", "drawn") for i in range(3)]
        for kind, values in (("planned", objective.sampler.planned(epoch)), ("drawn", objective.sampler.drawn(epoch))):
            assert [record[f"p_{kind}_{i}"] for i in range(3)] == pytest.approx(np.mean(values, axis=0), abs=6e-7)
    assert make_training("kd").objective.epoch_record(0) == {}


def test_steps_that_do_the_same_have_the_same_key(make_training: Make) -> None:
    plain = make_training("kd").objective
    assert plain.graph_key(0) == plain.graph_key(7) is not None
    swapped = make_training("iakd", schedule=HALF).objective
    keys = [swapped.graph_key(step) for step in range(20)]
    masks = [swapped.sampler.masks(step, 16) for step in range(20)]
    assert [key[0] for key in keys] == [tuple(mask) for mask in masks] and len(set(keys)) > 2
    by_image = make_training("iakd", schedule=HALF, options={"iakd": {"granularity": "sample"}}).objective
    assert None in {by_image.graph_key(step) for step in range(20)}
    rising = make_training("kd+dkd", options={"dkd": {"warmup_epochs": 2}}).objective
    epochs = [[rising.graph_key(step) for step in range(5 * epoch, 5 * epoch + 5)] for epoch in range(4)]
    first, second, *rest = (set(keys) for keys in epochs)
    assert len(first) == len(second) == 1 and first != second, "its weight is another one in each epoch of the warm-up"
    assert rest == [second] * 2
    drawn = make_training("kd+crd", options={"crd": {"negatives": 20}}).objective
    assert drawn.graph_key(0) is None, "its negatives are drawn in the step"


def test_statistics_are_re_estimated_over_all_images_where_asked(make_training: Make) -> None:
    def finished(options: dict[str, object], expression: str = "iakd") -> Trainer:
        training = make_training(expression, options={"iakd": options} if expression == "iakd" else {})
        training.objective.eval()  # as a validation leaves it
        training.objective.finish(training.data, 16)
        return training

    training = finished({"bn_reestimate": True})
    student = training.objective.student
    layer, inputs = student.stem[1], []
    student.stem[1].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    student.train()
    for batch in training.data.epoch(0, 0, BatchFormat(16, Augment())):
        student.stem(batch.images)
    layer.momentum = 0.1
    means = torch.stack([each.mean((0, 2, 3)) for each in inputs])
    assert len(means) == 5
    again = finished({"bn_reestimate": True}).objective.student.stem[1]
    assert torch.allclose(again.running_mean, means.mean(0), atol=1e-5)
    assert again.momentum == 0.1 and again.num_batches_tracked == 5
    student.head.append(nn.BatchNorm1d(4))
    student.train()
    reestimate_statistics(student, training.data, 16)
    assert student.head[-1].num_batches_tracked == 5, "in a head of somebody else's"
    for options, expression in (({}, "iakd"), ({}, "kd")):
        untouched = finished(options, expression).objective.student.stem[1]
        assert untouched.num_batches_tracked == 0


def test_the_teacher_is_neither_trained_nor_saved(make_training: Make) -> None:
    training = make_training("iakd+kd")
    objective = training.objective
    objective.train()
    assert not any(module.training for module in objective.teacher.modules())
    trained = {id(parameter) for parameter in objective.trained_parameters()}
    assert not trained & {id(parameter) for parameter in objective.teacher.parameters()}
    assert trained >= {id(parameter) for parameter in objective.student.parameters()}
    saved = sum(tensor.numel() for tensor in objective.state_dict().values())
    assert saved == sum(tensor.numel() for tensor in objective.student.state_dict().values())
    assert make_training("scratch").objective.hybrid is None


def test_features_come_from_one_forward_pass_of_each_network(make_training: Make) -> None:
    training = make_training("iakd+kd+sp", schedule=Schedule(p0=1.0))
    objective, batch = training.objective, first_batch(training)
    calls = {"student": 0, "teacher": 0}
    for name, network in (("student", objective.student), ("teacher", objective.teacher)):
        network.stem.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    objective.train()
    terms, _ = objective(batch, 0)
    assert set(terms) == {"ce", "kd", "sp"} and calls == {"student": 1, "teacher": 1}


def test_records_of_losses_go_by_their_names(make_training: Make) -> None:
    assert make_training("kd").objective.record() == {}
    record = make_training("hints+kd", options={"hints": {"points": 2, "images": 32}}).objective.record()
    assert set(record) == {"hints"} and len(record["hints"]["points"]) == 2
