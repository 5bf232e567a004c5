"""Swaps drawn for each image or each channel instead of the whole batch, and of whole stages: by meaning."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import network
from torch import nn

from iakd import config, models
from iakd.config import IakdOptions, LrSchedule, Schedule
from iakd.data.loader import BatchFormat, DeviceLoader
from iakd.distillation.distiller import Distiller, make_distiller
from iakd.distillation.registry import timeline_of
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid, mix_branches
from iakd.interactive.swap_sampler import ChannelSwapSampler, SampleSwapSampler, SwapSampler, make_swap_sampler
from iakd.models.features import FeatureSpec
from iakd.training.timeline import Timeline

TIMELINE = Timeline(40, 25, 0.1, LrSchedule(milestones=[0.4, 0.7]), batch_size=6)
HALF = Schedule(kind="uniform", p0=0.3, student_only=0.2)


def sampler(granularity: str) -> SwapSampler:
    return make_swap_sampler(IakdOptions(granularity=granularity), HALF, TIMELINE, [4, 8, 16], 0, False)


def test_each_image_goes_through_the_network_that_was_drawn_for_it(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    """In evaluation mode images do not depend on each other, so the batch must equal images sent one by one."""
    hybrid = Hybrid(student, teacher, IakdOptions(granularity="sample"), seed=0)
    student.eval()
    kept = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]]).bool()
    together = hybrid(images, list(kept))
    for i in range(6):
        alone = hybrid(images[i : i + 1], [bool(kept[place, i]) for place in range(3)])
        assert torch.allclose(together[i], alone[0], atol=1e-5), f"image {i}"


def test_an_image_is_computed_by_one_branch_alone() -> None:
    seen: dict[str, torch.Tensor] = {}

    def spy(name: str, factor: float) -> nn.Module:
        module = nn.Module()

        def forward(features: torch.Tensor) -> torch.Tensor:
            seen[name] = features.flatten()
            return factor * features

        module.forward = forward  # type: ignore[method-assign]
        return module

    features = torch.arange(1.0, 6.0).view(5, 1)
    kept = torch.tensor([True, False, False, True, True])
    outcome = mix_branches([spy("student", 10)], spy("teacher", 100), kept, features)
    assert seen["student"].tolist() == [1, 4, 5] and seen["teacher"].tolist() == [2, 3]
    assert outcome.flatten().tolist() == [10, 200, 300, 40, 50]


def test_a_channel_is_the_student_s_the_teacher_s_or_the_mean(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    hybrid = Hybrid(student, teacher, IakdOptions(granularity="channel"), seed=0)
    student.eval()
    weights = torch.tensor([1.0, 0.0, 0.5, 0.0])
    stem = student.stem(images)
    ours, theirs = student.blocks[0](stem), nn.Sequential(*teacher.blocks[:3])(stem)
    seen = hybrid.forward_features(images, [weights, True, True], FeatureSpec(blocks=frozenset({0}))).blocks[0]
    for channel, expected in enumerate((ours, theirs, (ours + theirs) / 2, theirs)):
        assert torch.allclose(seen[:, channel], expected[:, channel], atol=1e-6), f"channel {channel}"


@pytest.mark.parametrize("granularity", ["sample", "channel"])
def test_in_the_student_only_phase_only_the_student_runs(
    granularity: str, student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    hybrid = Hybrid(student, teacher, IakdOptions(granularity=granularity), seed=0)
    twin = copy.deepcopy(student).train()
    hybrid.train()
    kept = sampler(granularity).masks(TIMELINE.total - 1, 6)
    assert kept == [True] * 3
    assert torch.equal(hybrid(images, kept), twin(images))


@pytest.mark.parametrize("granularity", ["sample", "channel"])
def test_gradients_reach_the_stem_and_the_teacher_stays(
    granularity: str, student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    before = models.save_weights(teacher)
    hybrid = Hybrid(student, teacher, IakdOptions(granularity=granularity), seed=0)
    hybrid.train()
    F.cross_entropy(hybrid(images, sampler(granularity).masks(0, 6)), torch.arange(6)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.stem.parameters())
    assert models.save_weights(teacher) == before


def test_frequencies_of_images() -> None:
    """Over 1,000 images the share kept lies within 4.5 standard errors of p, and two images are independent."""
    draws = SampleSwapSampler(HALF, replace(TIMELINE, batch_size=1000), 3, seed=0)
    kept = np.array([mask.tolist() for mask in draws.masks(7, 1000) if isinstance(mask, torch.Tensor)]).T
    assert (np.abs(kept.mean(axis=0) - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 1000)).all()
    pairs = np.corrcoef(kept[:-1, 0], kept[1:, 0])[0, 1]
    assert abs(pairs) < 0.15
    assert np.array_equal(draws.drawn(0)[7], kept.mean(axis=0)), "the record tells the draws that were used"


def test_frequencies_of_channels() -> None:
    draws = ChannelSwapSampler(HALF, TIMELINE, 2, 0, [4000, 1000])
    wide, narrow = draws.masks(3, 6)
    assert isinstance(wide, torch.Tensor) and isinstance(narrow, torch.Tensor)
    assert (len(wide), len(narrow)) == (4000, 1000)
    for weight, p in ((1.0, 0.3), (0.0, 0.35), (0.5, 0.35)):
        assert abs(float((wide == weight).float().mean()) - p) < 4.5 * np.sqrt(p * (1 - p) / 4000)


def test_no_image_is_left_alone_with_batchnorm() -> None:
    draws = SampleSwapSampler(Schedule(kind="uniform", p0=0.15, student_only=0.0), TIMELINE, 3, 0)
    counts = [
        6 if choice is True else 0 if choice is False else int(choice.sum())
        for step in range(300)
        for choice in draws.masks(step, 6)
    ]
    assert 1 not in counts and {0, 2} <= set(counts)


@pytest.mark.parametrize("teacher_bn", ["eval", "batch"])
@pytest.mark.parametrize(
    ("teacher_arch", "student_arch", "widths", "side", "some"),
    [
        ("vgg13", "vgg8", (4, 2), 8, True),
        ("vgg13", "vgg8", (4, 4), 8, None),  # no adapters
        ("vgg13", "vgg8", (4, 2), 16, False),
        ("resnet14", "resnet8", (4, 2), 8, False),
        ("resnet14", "resnet8", (4, 2), 4, True),
        ("resnet14", "vgg8", (4, 4), 8, True),  # maps of other sizes
    ],
)
def test_slots_whose_teacher_s_branch_refuses_a_single_image_are_known(
    teacher_arch: str, student_arch: str, widths: tuple[int, int], side: int, some: bool | None, teacher_bn: str
) -> None:
    teacher = network(teacher_arch, 1, widths[0]).eval().requires_grad_(False)
    student = network(student_arch, 2, widths[1])
    hybrid = Hybrid(student, teacher, IakdOptions(granularity="sample", teacher_bn=teacher_bn), seed=0)
    hybrid.train()
    found = hybrid.refuse_single((1, side, side))
    assert any(found) is ((teacher_bn == "batch") if some is None else some)
    image = torch.randn(1, 1, side, side)
    for slot, refused in enumerate(found):
        kept: list[bool | torch.Tensor] = [True] * len(found)
        kept[slot] = False
        copied = copy.deepcopy(hybrid)
        copied.student.eval()
        if refused:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                copied(image, kept)
        else:
            copied(image, kept)


@pytest.mark.parametrize("teacher_bn", ["eval", "batch"])
@pytest.mark.parametrize("images", [2, 3, 7, 10])
def test_images_are_swapped_on_maps_of_one_pixel(images: int, teacher_bn: str) -> None:
    """The last maps of these networks; a batch of any size trains, and the record tells what was kept."""
    pixels = np.random.default_rng(0).integers(0, 255, (images, 1, 8, 8), dtype=np.uint8)
    data = DeviceLoader(pixels, np.arange(images) % 10, [0.5], [0.5], "cpu")
    teacher = network("vgg13", 1, width=4).eval().requires_grad_(False)
    schedule = {"kind": "uniform", "p0": 0.8, "student_only": 0.0}
    iakd = {"granularity": "sample", "schedule": schedule, "teacher_bn": teacher_bn}
    method = config.Method.model_validate({"method": "iakd", "iakd": iakd})
    timeline = timeline_of(config.Recipe(epochs=12, batch_size=4), method, images)
    distiller = make_distiller(network("vgg8", 2, width=2), teacher, method, timeline=timeline, seed=0, data=data)
    distiller.train()
    for epoch in range(timeline.epochs):
        shares = []
        for position, batch in enumerate(data.epoch(0, epoch, BatchFormat(4))):
            step = timeline.first_step(epoch) + position
            assert timeline.images_in(step) == len(batch.labels)
            masks = distiller.sampler.masks(step, len(batch.labels))
            shares.append([float(mask) if isinstance(mask, bool) else mask.double().mean().item() for mask in masks])
            loss = torch.stack(list(distiller(batch, step)[0].values())).sum()
            loss.backward()
            assert torch.isfinite(loss)
        record = distiller.epoch_record(epoch)
        assert [record[f"p_drawn_{slot}"] for slot in range(5)] == pytest.approx(np.mean(shares, axis=0), abs=1e-6)


def test_with_a_frozen_stem_and_head_each_image_passes_a_student_s_block() -> None:
    draws = SampleSwapSampler(
        Schedule(kind="uniform", p0=0.0, student_only=0.0), replace(TIMELINE, batch_size=50), 3, 0, True
    )
    kept = np.array([mask.tolist() for mask in draws.masks(0, 50) if isinstance(mask, torch.Tensor)])
    assert (kept.sum(axis=0) == 1).all()


def test_whole_stages_are_swapped_as_one(teacher: models.Network, images: torch.Tensor) -> None:
    student = network("resnet14", seed=2).eval()  # two blocks a stage
    by_block = Hybrid(student, teacher, IakdOptions(), seed=0)
    by_stage = Hybrid(student, teacher, IakdOptions(unit="stage"), seed=0)
    assert (len(by_block.pairs), len(by_stage.pairs)) == (6, 3)
    assert torch.equal(by_stage(images, [True, False, True]), by_block(images, [True, True, False, False, True, True]))
    by_block.require(FeatureSpec(blocks=frozenset(range(6))))
    by_stage.require(FeatureSpec(blocks=frozenset({1, 3}), preactivations=frozenset({5})))
    with pytest.raises(
        UserError, match="reads the features of student block 3, which is swapped together with the blocks after it"
    ):
        by_stage.require(FeatureSpec(blocks=frozenset({1, 2})))


@pytest.mark.parametrize("form", ["single_path", "two_path"])
def test_a_loss_inside_what_is_swapped_as_one_needs_the_student_s_path(teacher: models.Network, form: str) -> None:
    """hints looks at the first block of a stage here, which a swapped stage does not have."""
    data = DeviceLoader(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2, [0.5], [0.5], "cpu")
    iakd, hints = {"unit": "stage", "form": form, "schedule": HALF.model_dump()}, {"points": 6, "images": 8}
    method = config.Method.model_validate({"method": "iakd+hints", "iakd": iakd, "hints": hints})

    def build() -> Distiller:
        return make_distiller(network("resnet14", seed=2), teacher, method, timeline=TIMELINE, seed=0, data=data)

    if form == "two_path":
        build()
    else:
        with pytest.raises(UserError, match=r"set iakd\.unit: block, or iakd\.form: two_path"):
            build()
