"""The teacher's classifier on the student's features: the formula and what is trained."""

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, loss_between, make_training
from gradients import Array, agree
from references import z_scores
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs
from iakd.models.features import Features
from iakd.models.network import Frozen

OPTIONS = {"feature_weight": 2.0, "regression_weight": 3.0}


def reference(maps: Array, features: Array, logits: Array, kernel: Array, weight: Array, bias: Array) -> float:
    """2·mean (f − f_t)² + 3·mean (W·f + b − z_t)², f the mean over positions of ReLU(BN(K·maps))."""
    images, _, height, width = maps.shape
    pixels = np.array([kernel @ maps[i, :, y, x] for i in range(images) for y in range(height) for x in range(width)])
    pixels = (pixels - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5)
    f = np.maximum(pixels, 0).reshape(images, height * width, -1).mean(1)
    return float(2 * ((f - features) ** 2).mean() + 3 * ((f @ weight.T + bias - logits) ** 2).mean())


def outputs_of(step: ForwardOutputs, maps: Tensor, features: Tensor, logits: Tensor) -> ForwardOutputs:
    return ForwardOutputs(
        step.step,
        step.batch,
        Features(unpooled=maps, logits=step.student.logits),
        Features(pooled=features, logits=logits),
        step.transform_logits,
    )


def parts(loss: DistillationLoss) -> tuple[nn.Conv2d, nn.Linear]:
    connector, frozen = loss.connector, loss.classifier
    assert isinstance(connector, nn.Sequential) and isinstance(frozen, Frozen)
    assert isinstance(connector[0], nn.Conv2d) and isinstance(frozen.module, nn.Linear)
    return connector[0], frozen.module


@pytest.mark.parametrize(("student", "teacher"), [("resnet8", "resnet14"), ("resnet8", "wrn_16_2")])
def test_value_and_gradient(student: str, teacher: str) -> None:
    loss, step = loss_between("srrl", student, teacher, **OPTIONS)
    convolution, linear = parts(loss)
    assert convolution.weight.shape == (linear.in_features, 64, 1, 1)
    rng = np.random.default_rng(0)
    maps, features = rng.normal(size=(3, 64, 2, 4)), rng.normal(size=(3, linear.in_features))
    logits = rng.normal(size=(3, 10))
    weights = [each.detach().double().numpy() for each in (convolution.weight[:, :, 0, 0], linear.weight, linear.bias)]

    def ours(*tensors: Tensor) -> Tensor:
        return torch.stack(list(loss(outputs_of(step, *tensors)).values())).sum()

    agree(ours, lambda *arrays: reference(*arrays, *weights), maps, features, logits)


def test_features_and_outputs_are_those_of_the_two_networks() -> None:
    training = make_training("srrl")
    objective, batch = training.objective.train(), fixed_batch(training)
    (loss,) = objective.losses.values()
    student, teacher = objective.student, objective.teacher
    caught: list[Tensor] = []
    student.head.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    teacher.head.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    with torch.no_grad():
        terms, _ = objective(batch, 0)
        theirs = teacher(batch.images)
    maps, _, teacher_maps = caught
    convolution, linear = parts(loss)
    arrays = [each.double().numpy() for each in (maps, teacher_maps.mean((2, 3)), theirs)]
    weights = [each.detach().double().numpy() for each in (convolution.weight[:, :, 0, 0], linear.weight, linear.bias)]
    found = 2 * terms["srrl_features"].item() + 3 * terms["srrl_regression"].item()
    assert found == pytest.approx(reference(*arrays, *weights), rel=1e-3)


def test_the_connector_and_the_student_are_trained_and_the_teacher_s_classifier_is_not_even_saved() -> None:
    training = make_training("srrl")
    objective = training.objective.train()
    terms, _ = objective(fixed_batch(training), 0)
    (terms["srrl_features"] + terms["srrl_regression"]).backward()
    (loss,) = objective.losses.values()
    convolution, linear = parts(loss)
    assert linear is list(objective.teacher.head.modules())[-1]
    assert convolution.weight.grad is not None and convolution.weight.grad.abs().sum() > 0
    assert objective.student.stem[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in objective.student.head.parameters())  # it learns from the labels alone
    assert linear.weight.grad is None and not any("classifier" in name for name in loss.state_dict())


def test_zero_for_a_student_whose_features_are_the_teacher_s() -> None:
    loss, step = loss_between("srrl", "resnet8", "resnet14")
    _, linear = parts(loss)
    maps = torch.rand(4, 64, 3, 3)
    loss.connector = nn.Identity()
    features = maps.mean((2, 3))
    terms = loss(outputs_of(step, maps, features, linear(features)))
    assert [term.item() for term in terms.values()] == pytest.approx([0, 0], abs=1e-10)


def test_standardised_outputs_in_a_sum() -> None:
    training = make_training("kd+srrl+standardize")
    objective, batch = training.objective.train(), fixed_batch(training)
    loss = objective.losses["srrl"]
    caught: list[Tensor] = []
    loss.classifier.register_forward_hook(lambda module, arguments, output: caught.append(output))
    with torch.no_grad():
        terms, _ = objective(batch, 0)
        theirs = objective.teacher(batch.images)
    ours, theirs = (z_scores(each.double().numpy()) for each in (caught[0], theirs))
    assert terms["srrl_regression"].item() == pytest.approx(((ours - theirs) ** 2).mean(), rel=1e-3)
