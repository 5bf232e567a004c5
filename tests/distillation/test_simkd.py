"""The reused classifier: what is trained, deployed and evaluated, and which sums are possible."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from digit_training import STUDENT, digit_images, fixed_batch, make_training, network
from torch import nn

from iakd import config, models
from iakd.config import parse
from iakd.data.store import PreparedData
from iakd.distillation.losses.simkd import ReusedHead
from iakd.distillation.registry import deploy
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.models.features import LOGITS, FeatureSpec, forward_features
from iakd.models.flops import model_cost
from iakd.models.shapes import unpooled_shape
from iakd.stages import distill, evaluate, prepare, teach

METHOD = config.Method(method="simkd")


def deployed(student: str, teacher: str, side: int = 32) -> tuple[models.Network, models.Network]:
    ours, theirs = (network(config.Network(arch=arch), seed) for seed, arch in enumerate((student, teacher)))
    deploy(ours, theirs, METHOD, (1, side, side))
    return ours.eval(), theirs.eval()


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2", "torchvision/resnet18"])
def test_the_input_of_the_global_pooling_is_a_feature(arch: str) -> None:
    net = network(config.Network(arch=arch), 0).eval()
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = forward_features(net, images, FeatureSpec(unpooled=True, pooled=True) | LOGITS)
    assert torch.equal(seen.logits, net(images))
    assert torch.allclose(seen.unpooled.mean((2, 3)), seen.pooled, atol=1e-5)
    assert tuple(seen.unpooled.shape[1:]) == unpooled_shape(net, (1, 32, 32))
    assert not any(module._forward_pre_hooks for module in net.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("resnet14", "resnet8"),
        ("wrn_16_2", "ShuffleV1"),
        ("vgg11", "MobileNetV2"),
        ("ResNet18", "vgg8"),
        ("MobileNetV2", "ShuffleV2"),
        ("torchvision/resnet18", "resnet8"),
    ],
)
def test_logits_are_the_teacher_s_classifier_on_projected_maps(teacher: str, student: str) -> None:
    ours, theirs = deployed(student, teacher)
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = forward_features(ours, images, FeatureSpec(unpooled=True) | LOGITS)
    last = next(layer for layer in reversed(list(theirs.head.modules())) if isinstance(layer, nn.Linear))
    assert torch.allclose(seen.logits, last(seen.unpooled.mean((2, 3))), atol=1e-5)
    assert seen.unpooled.shape[1] == unpooled_shape(theirs, (1, 32, 32))[0]
    assert all(a <= b for a, b in zip(seen.unpooled.shape[2:], unpooled_shape(theirs, (1, 32, 32))[1:], strict=True))


def test_a_perfect_projector_returns_the_teacher_s_logits_without_loss() -> None:
    training = make_training("simkd")
    student, teacher = training.objective.student, training.objective.teacher
    batch = fixed_batch(training)
    with torch.no_grad():
        maps = forward_features(teacher, batch.images, FeatureSpec(unpooled=True)).unpooled

    class Perfect(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return maps

    student.head.projector = Perfect()
    terms, logits = training.objective(batch, 0)
    assert terms["simkd"] == 0 and terms["ce"] == 0
    assert torch.equal(logits, teacher(batch.images))


def test_the_loss_is_the_mean_squared_difference_of_maps() -> None:
    training = make_training("simkd", options={"simkd": {"weight": 3.0}})
    student, teacher = training.objective.student.eval(), training.objective.teacher
    batch = fixed_batch(training)
    with torch.no_grad():
        terms, _ = training.objective(batch, 0)
        features = student.enter(batch.images)
        for block in student.blocks:
            features = block(features)
        ours = student.head.projector(features).double()
        features = teacher.enter(batch.images)
        for block in teacher.blocks:
            features = block(features)
    assert terms["simkd"].item() == pytest.approx(3 * ((ours - features.double()) ** 2).mean().item(), rel=1e-5)


def test_larger_maps_are_pooled_before_the_projector_and_smaller_ones_compared_as_they_are() -> None:
    smaller, _ = deployed("vgg8", "MobileNetV2")  # 4×4 and 2×2
    assert smaller.head.size == (2, 2)
    larger, _ = deployed("MobileNetV2", "vgg8")
    assert larger.head.size == (2, 2)
    maps = torch.randn(2, 512, 4, 4)
    expected = smaller.head.projector(F.adaptive_avg_pool2d(maps, (2, 2)))
    assert torch.allclose(smaller.head(maps), smaller.head.classifier(expected), atol=1e-5)


def test_the_classifier_is_a_frozen_copy_that_no_training_moves(make_training: object) -> None:
    training = make_training("simkd", weight_decay=0.1, momentum=0.9)
    before = copy.deepcopy(training.objective.student.head.classifier.state_dict())
    training.fit()
    head = training.objective.student.head
    assert isinstance(head, ReusedHead) and not head.classifier.training
    for (key, ours), theirs in zip(
        head.classifier.state_dict().items(), training.objective.teacher.head.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, before[key]) and torch.equal(ours, theirs)
    trained = {id(parameter) for parameter in training.objective.trained_parameters()}
    assert not trained & {id(parameter) for parameter in head.classifier.parameters()}
    assert trained >= {id(parameter) for parameter in head.projector.parameters()}


def test_the_projector_is_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = make_training("simkd").objective.student.head.projector.state_dict()
    torch.manual_seed(2)
    second = make_training("simkd").objective.student.head.projector.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("other", ["kd", "dkd", "ctkd", "dist", "lskd", "label_smoothing"])
def test_losses_on_outputs_are_refused_with_a_reason(other: str) -> None:
    with pytest.raises(
        UserError, match=f"simkd cannot be added to {other}: its outputs are the teacher's classifier's"
    ):
        parse(
            {
                "teachers": [{"arch": "resnet14"}],
                "students": [{"arch": "resnet8"}],
                "methods": {f"simkd+{other}": {}},
            },
            "test",
        )


def test_a_teacher_with_another_head_is_a_one_line_error() -> None:
    student, teacher = (network(config.Network(arch=arch), 0) for arch in ("resnet8", "resnet14"))
    teacher.head = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(64, 10))
    with pytest.raises(UserError, match="this teacher's head is built differently"):
        deploy(student, teacher, METHOD, (1, 32, 32))


def test_other_methods_leave_the_student_alone() -> None:
    student, teacher = (network(config.Network(arch=arch), 0) for arch in ("resnet8", "resnet14"))
    head = student.head
    deploy(student, teacher, config.Method(method="iakd+kd"), (1, 32, 32))
    assert student.head is head


def small_plan() -> Experiment:
    recipe = {"epochs": 2, "batch_size": 50}
    return plan_experiment(
        parse(
            {
                "teachers": [{"arch": "resnet14", "width": 4}],
                "students": [{"arch": "resnet8", "width": 2}],
                "methods": {"scratch": {}, "simkd": {}},
                "teach": {"recipe": recipe},
                "distill": {"seeds": [0], "transfer": 100, "recipe": recipe},
                "evaluate": {"latency_runs": 1},
                "compute": {"device": "cpu"},
            },
            "test",
        )
    )


def test_it_is_evaluated_as_it_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to evaluation.json: the extra layers are in the file, counted, and give the same validation."""
    monkeypatch.chdir(tmp_path)
    experiment = small_plan()
    prepare.run(experiment)
    teach.run(experiment, experiment.teachers[0])
    measured = {}
    for job in experiment.students:
        distill.run(experiment, job)
        evaluate.evaluate_run(experiment, job.folder)
        measured[job.label] = json.loads((job.folder / "evaluation.json").read_text())
    plain = models.build(experiment.params.students[0], 1, 10)
    teacher = models.build(experiment.params.teachers[0], 1, 10)
    deploy(plain, teacher, METHOD, PreparedData.open(experiment.data.folder).image_shape)
    content, _ = run_dir.read_model(experiment.students[1].folder)
    models.load_weights(plain, content, "the deployed student")
    taught, _ = run_dir.read_model(experiment.teachers[0].folder)
    models.load_weights(teacher, taught, "the teacher")
    for ours, theirs in zip(
        plain.head.classifier.state_dict().values(), teacher.head.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    size = model_cost(plain, (1, 8, 8))
    assert {name: measured["simkd"][name] for name in size} == size
    assert size["parameters"] > measured["scratch"]["parameters"]


def test_the_student_in_the_tests_of_all_methods_is_what_is_deployed() -> None:
    plain = models.build(STUDENT, 1, 10)
    training = make_training("simkd")
    deploy(plain, training.objective.teacher, METHOD, digit_images(0, 2).image_shape)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in training.objective.student.state_dict().items()} == shapes
