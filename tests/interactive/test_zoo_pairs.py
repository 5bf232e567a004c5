"""One step of IAKD on every pair of the benchmark and on ImageNet's networks; what is left is a plain student."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iakd import config, models
from iakd.config import IakdOptions, LrSchedule, Recipe
from iakd.data.loader import Batch, DeviceLoader
from iakd.distillation.distiller import Distiller, make_distiller
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid, resized
from iakd.models.features import Features, forward_features
from iakd.models.network import initialise
from iakd.models.pairing import initialise_from_teacher
from iakd.training.timeline import Timeline
from iakd.training.trainer import make_optimizer

TIMELINE = Timeline(epochs=2, steps_per_epoch=10, peak=0.1, lr_schedule=LrSchedule(), batch_size=6)
SAME = [
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
]
CROSS = [
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("wrn_40_2", "ShuffleV1"),
]
LARGE = [("torchvision/resnet50", "torchvision/resnet18")]
WITHOUT_ADAPTERS = [pair for pair in SAME if pair != ("wrn_40_2", "wrn_40_1")]


DATA = DeviceLoader(np.zeros((2, 3, 32, 32), np.uint8), np.array([1, 2]), [0.5] * 3, [0.2] * 3, "cpu")


def network(arch: str, seed: int, channels: int = 3, **options: object) -> models.Network:
    net = models.build(config.Network(arch=arch, **options), channels, classes=10)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def one_step(teacher: models.Network, student: models.Network, size: int) -> tuple[Distiller, list[bool]]:
    """A step in which some slots are swapped and some kept; the first is kept."""
    schedule = {"kind": "uniform", "p0": 0.5, "student_only": 0.0}
    method = make_distiller(
        student,
        teacher,
        config.Method.model_validate({"method": "iakd", "iakd": {"schedule": schedule}}),
        timeline=TIMELINE,
        seed=0,
        data=DATA,
    )
    sampler = method.sampler
    assert sampler is not None
    step = next(s for s in range(20) if sampler.masks(s, 2)[0] and not all(sampler.masks(s, 2)))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    optimizer = make_optimizer(method.trained_parameters(), Recipe(lr=0.01))
    method.train()
    terms, logits = method(Batch(images, torch.tensor([1, 2]), torch.arange(2)), step)
    assert logits.shape == (2, 10)
    terms["ce"].backward()
    optimizer.step()
    return method, sampler.masks(step, 2)


@pytest.mark.parametrize(("teacher_arch", "student_arch"), SAME + CROSS + LARGE)
def test_one_step_of_every_pair(teacher_arch: str, student_arch: str) -> None:
    teacher, student = network(teacher_arch, seed=1), network(student_arch, seed=2)
    before = models.save_weights(teacher)
    method, kept = one_step(teacher, student, 224 if "/" in teacher_arch else 32)
    assert method.hybrid is not None
    # the gradient passes the teacher's blocks on its way to the student's; what is swapped out has none
    for pair, keep in zip(method.hybrid.pairs, kept, strict=True):
        for block in pair.student.blocks:
            for parameter in block.parameters():
                assert (parameter.grad is not None) == keep
    assert all(parameter.grad is not None for parameter in student.stem.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.blocks[0].parameters())
    adapters = set(method.trained_parameters()) - set(student.parameters())
    assert (not adapters) == ((teacher_arch, student_arch) in WITHOUT_ADAPTERS)
    assert models.save_weights(teacher) == before
    plain = network(student_arch, seed=3)
    assert list(student.state_dict()) == list(plain.state_dict())
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in plain.parameters())
    models.load_weights(plain, models.save_weights(student), "the deployed student")


@pytest.mark.parametrize(("teacher_arch", "student_arch"), SAME + CROSS + LARGE)
def test_hybrid_paths_of_every_pair(teacher_arch: str, student_arch: str) -> None:
    """One path of each direction and one that changes often, through adapters where widths and sizes differ."""
    teacher, student = network(teacher_arch, seed=1), network(student_arch, seed=2)
    net = hybrid(teacher, student, form="two_path")
    size = 224 if "/" in teacher_arch else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    slots = len(net.pairs)
    for path in (
        tuple(slot > 0 for slot in range(slots)),
        tuple(slot < slots - 1 for slot in range(slots)),
        tuple(slot % 2 == 0 for slot in range(slots)),
    ):
        net.zero_grad()
        of_student, of_teacher = net.prefixes([path])
        own = forward_features(student, images, of_student) if path[0] else Features()
        with torch.no_grad():
            taught = forward_features(teacher, images, of_teacher)
        logits = net.forward_path(images, path, own, taught)
        assert logits.shape == (2, 10)
        F.cross_entropy(logits, torch.tensor([1, 2])).backward()
        for pair, keep in zip(net.pairs, path, strict=True):
            for block in pair.student.blocks:
                assert all((parameter.grad is not None) == keep for parameter in block.parameters())


def hybrid(teacher: models.Network, student: models.Network, **options: object) -> Hybrid:
    net = Hybrid(student, teacher.eval().requires_grad_(False), IakdOptions.model_validate(options), seed=0)
    net.train()
    return net


@pytest.mark.parametrize("size", [(32, 32), (21, 35), (8, 8)])
def test_every_slot_can_be_swapped_or_kept_at_any_image_size(size: tuple[int, int]) -> None:
    net = hybrid(network("vgg8", seed=1, width=8), network("MobileNetV2", seed=2))
    images = torch.randn(4, 3, *size)
    places = len(net.pairs)
    for kept in ([False] * places, [i % 2 == 0 for i in range(places)], [i % 2 == 1 for i in range(places)]):
        F.cross_entropy(net(images, kept), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)
    assert all(parameter.grad is not None for parameter in net.student.parameters())


def test_the_teachers_blocks_see_maps_of_their_own_size_and_the_students_of_theirs() -> None:
    teacher, student = network("resnet8x4", seed=1), network("ShuffleV2", seed=2)
    net = hybrid(teacher, student)
    images = torch.randn(2, 3, 32, 32)
    net(images, [True] * len(net.pairs))
    for place, pair in enumerate(net.pairs):
        seen: list[torch.Tensor] = []
        blocks = net.branches[place].teacher
        handle = blocks.register_forward_hook(lambda module, args, out, seen=seen: seen.extend([args[0], out]))
        after = (
            student.blocks[pair.student.first + len(pair.student.blocks)]
            if place + 1 < len(net.pairs)
            else student.head
        )
        entering = after.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        net(images, [i != place for i in range(len(net.pairs))])
        handle.remove()
        entering.remove()
        assert [tuple(x.shape[1:]) for x in seen] == [pair.teacher.before, pair.teacher.after, pair.student.after]


def test_a_map_is_made_smaller_by_means_and_larger_by_repetition() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4)
    smaller = resized(nn.Identity(), features, (2, 2))
    assert smaller.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    larger = resized(nn.Identity(), smaller, (4, 4))
    assert torch.equal(larger, smaller.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert resized(nn.Identity(), features, (3, 5)).shape == (1, 1, 3, 5)


def test_kept_groups_are_the_student() -> None:
    student = network("MobileNetV2", seed=2)
    net = hybrid(network("vgg13", seed=1), student)
    assert any(len(pair.student.blocks) > 1 for pair in net.pairs)
    student.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images, [True] * len(net.pairs)), student(images))


def test_transformers_of_unequal_width_swap_through_linear_adapters() -> None:
    timm = pytest.importorskip("timm")
    assert timm
    teacher, student = network("timm/vit_small_patch16_224", seed=1), network("timm/vit_tiny_patch16_224", seed=2)
    method, _ = one_step(teacher, student, 224)
    assert method.hybrid is not None
    assert {type(layer) for branch in method.hybrid.branches for layer in branch.enter} == {nn.Linear, nn.LayerNorm}


def test_initialising_from_a_teacher_of_fewer_blocks_is_refused() -> None:
    teacher, student = network("ResNet18", seed=1, width=8), network("ResNet50", seed=2, width=8)
    with pytest.raises(UserError, match="this teacher has fewer"):
        initialise_from_teacher(student, teacher)


def test_slots_follow_one_another() -> None:
    pairs = hybrid(network("wrn_40_2", seed=1), network("ShuffleV1", seed=2)).pairs
    for before, after in pairwise(pairs):
        assert before.student.after == after.student.before
        assert before.teacher.after == after.teacher.before
