"""Hybrid paths: how often each is drawn, what it computes, what it trains, and what it leaves alone."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats
from small import network
from torch import nn

from iakd import models
from iakd.config import IakdOptions, LrSchedule, Schedule
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid
from iakd.interactive.paths import Path, PathSampler
from iakd.models.features import Features, FeatureSpec, forward_features
from iakd.training.timeline import Timeline

TIMELINE = Timeline(
    epochs=40, steps_per_epoch=50, peak=0.1, lr_schedule=LrSchedule(milestones=[0.4, 0.7]), batch_size=6
)
KINDS = ("bernoulli", "teacher_to_student", "student_to_teacher", "any")
MIXED: list[Path] = [tuple(bool(n >> i & 1) for i in range(3)) for n in range(1, 7)]


def sampler(kind: str, p0: float, slots: int = 5, count: int = 1, seed: int = 0, **settings: object) -> PathSampler:
    schedule = Schedule(kind="uniform", p0=p0, **{"student_only": 0.0, **settings})
    return PathSampler(kind, schedule, TIMELINE, slots, seed, count)


def all_drawn(paths: PathSampler) -> np.ndarray:
    return np.concatenate([paths.drawn(epoch).reshape(-1, paths.slots) for epoch in range(TIMELINE.epochs)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.75])
def test_a_block_is_the_student_s_with_probability_p(kind: str, p: float) -> None:
    drawn = all_drawn(sampler(kind, p, count=2))
    limit = stats.norm.isf(1e-5) * 0.5 / np.sqrt(len(drawn))  # one draw per path decides a whole contiguous path
    assert abs(drawn.mean() - p) < limit


def test_contiguous_paths_change_once_and_uniformly() -> None:
    """At p = ½, the first student block of T→S is each of the blocks 2…L equally often; S→T is its mirror image."""
    for kind, first in (("teacher_to_student", False), ("student_to_teacher", True)):
        drawn = all_drawn(sampler(kind, 0.5))
        changes = np.diff(drawn.astype(int), axis=1)
        assert (np.abs(changes).sum(axis=1) == 1).all() and (drawn[:, 0] == first).all()
        counts = Counter(np.abs(changes).argmax(axis=1).tolist())
        assert stats.chisquare([counts[i] for i in range(4)]).pvalue > 1e-5


@pytest.mark.parametrize("kind", ["teacher_to_student", "student_to_teacher"])
def test_a_larger_p_leaves_out_more_hybrids(kind: str) -> None:
    """With p ≥ ½, a share 2(1 − p) of the contiguous paths are hybrids; the others are the student."""
    for p in (0.5, 0.75, 0.9):
        drawn = all_drawn(sampler(kind, p))
        hybrids = ~drawn.all(axis=1)
        assert hybrids.mean() == pytest.approx(2 * (1 - p), abs=0.05) and drawn[~hybrids].all()


def test_any_has_half_of_its_paths_from_independent_draws() -> None:
    """Paths that change more than once can only be Bernoulli's: 22 of 32 patterns of five blocks."""
    several = (np.abs(np.diff(all_drawn(sampler("any", 0.5)).astype(int), axis=1)).sum(axis=1) > 1).mean()
    assert several == pytest.approx(0.5 * 22 / 32, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_with_p_1_and_in_the_student_only_phase_there_are_no_paths(kind: str) -> None:
    assert not any(sampler(kind, 1.0).paths(step) for step in range(TIMELINE.total))
    halves = sampler(kind, 0.5, student_only=0.5)
    assert any(halves.paths(step) for step in range(900, 1000))
    assert not any(halves.paths(step) for step in range(1000, TIMELINE.total))


def test_paths_of_a_step_are_hybrids_and_repeat_what_was_drawn() -> None:
    one, again, other = sampler("any", 0.5, count=3), sampler("any", 0.5, count=3), sampler("any", 0.5, count=3, seed=1)
    steps = [3, 1999, 49, 50, 700]
    assert [one.paths(step) for step in steps] == [again.paths(step) for step in reversed(steps)][::-1]
    assert any(one.paths(step) != other.paths(step) for step in range(20))
    for step in range(200):
        rows = [tuple(row) for row in one.drawn(step // 50)[step % 50].tolist()]
        assert one.paths(step) == {path: rows.count(path) for path in rows if 0 < sum(path) < 5}


@pytest.mark.parametrize("slots", [2, 9])
def test_contiguous_paths_are_few(slots: int) -> None:
    """So a GPU needs 2(L − 1) graphs at most, and not 2^L."""
    kinds = ("teacher_to_student", "student_to_teacher")
    seen = {path for kind in kinds for step in range(TIMELINE.total) for path in sampler(kind, 0.5, slots).paths(step)}
    assert len(seen) == 2 * (slots - 1)


# --- the forward pass of a path ---


def joined(student: models.Network, teacher: models.Network, **settings: object) -> Hybrid:
    hybrid = Hybrid(student, teacher, IakdOptions(form="two_path", **settings), seed=0)
    hybrid.train()
    return hybrid


def run_path(hybrid: Hybrid, teacher: models.Network, images: torch.Tensor, path: Path) -> torch.Tensor:
    """As the distiller does it: from the forward passes of both networks on."""
    of_student, of_teacher = hybrid.prefixes([path])
    own = forward_features(hybrid.student, images, of_student) if path[0] else Features()
    with torch.no_grad():
        theirs = forward_features(teacher, images, of_teacher)
    if hybrid.options.teacher_bn == "batch":
        theirs = hybrid.forward_teacher(images, [path])
    return hybrid.forward_path(images, path, own, theirs)


@pytest.mark.parametrize("path", MIXED)
@pytest.mark.parametrize("teacher_bn", ["eval", "batch"])
def test_a_path_is_the_chain_of_its_blocks(
    student: models.Network, teacher: models.Network, images: torch.Tensor, path: Path, teacher_bn: str
) -> None:
    """Stem of the first block's network, head of the last block's."""
    own, other = copy.deepcopy(student).train(), copy.deepcopy(teacher).train(teacher_bn == "batch")
    features = (own if path[0] else other).stem(images)
    for slot, kept in enumerate(path):
        for block in [own.blocks[slot]] if kept else other.blocks[3 * slot : 3 * slot + 3]:
            features = block(features)
    expected = (own if path[-1] else other).head(features)
    hybrid = joined(student, teacher, teacher_bn=teacher_bn)
    assert torch.equal(run_path(hybrid, teacher, images, path), expected)


@pytest.mark.parametrize("path", MIXED)
def test_a_path_trains_the_student_s_part_of_it_alone(
    student: models.Network, teacher: models.Network, images: torch.Tensor, path: Path
) -> None:
    before = models.save_weights(teacher)
    hybrid = joined(student, teacher)
    F.cross_entropy(run_path(hybrid, teacher, images, path), torch.arange(6)).backward()
    for part, used in ((student.stem, path[0]), (student.head, path[-1]), *zip(student.blocks, path, strict=True)):
        assert all((p.grad is not None and bool(p.grad.abs().sum() > 0)) == used for p in part.parameters())
    assert models.save_weights(teacher) == before
    assert all(p.grad is None for p in (*teacher.parameters(), *hybrid.teacher_ends.parameters()))
    assert "teacher_ends" not in {name.split(".")[0] for name in hybrid.state_dict()}


@pytest.mark.parametrize("path", [(False, True, False), (False, False, True), (True, False, True)])
def test_adapters_stand_where_the_path_changes_only(teacher: models.Network, images: torch.Tensor, path: Path) -> None:
    student = network("resnet8", seed=2, width=8)
    hybrid = joined(student, teacher)
    called = []
    for slot, branch in enumerate(hybrid.branches):
        for end in ("enter", "leave"):
            getattr(branch, end).register_forward_hook(lambda *_, what=(end, slot): called.append(what))
    run_path(hybrid, teacher, images, path)
    changes = [slot for slot in (1, 2) if path[slot] != path[slot - 1]]
    assert called == [("leave", slot - 1) if path[slot] else ("enter", slot) for slot in changes]


def statistics(network: nn.Module) -> list[torch.Tensor]:
    return [layer.running_mean.clone() for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize(("mode", "changed"), [("batch", False), ("separate", False), ("shared", True)])
def test_the_student_s_statistics_on_hybrid_features(
    student: models.Network, teacher: models.Network, images: torch.Tensor, mode: str, changed: bool
) -> None:
    hybrid = joined(student, teacher, student_bn=mode)
    layers = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    before, tracked = statistics(student), [layer.num_batches_tracked.item() for layer in layers]
    run_path(hybrid, teacher, images, (False, True, True)).sum().backward()
    moved = [not torch.equal(a, b) for a, b in zip(before, statistics(student), strict=True)]
    assert any(moved) == changed
    assert (tracked != [layer.num_batches_tracked.item() for layer in layers]) == changed
    assert all(layer.track_running_stats and layer in list(student.modules()) for layer in layers)
    assert any(layer.weight.grad is not None for layer in layers) == (mode != "separate")
    if mode == "separate":
        assert len(hybrid.hybrid_norms) == len(layers)
        assert any(layer.weight.grad is not None for layer in hybrid.hybrid_norms)
        assert any(bool(layer.num_batches_tracked) for layer in hybrid.hybrid_norms)


def test_prefixes_are_the_last_features_before_the_first_change(
    student: models.Network, teacher: models.Network
) -> None:
    hybrid = joined(student, teacher)
    of_student, of_teacher = hybrid.prefixes([(True, True, False), (False, False, True), (False, True, True)])
    assert of_student == FeatureSpec(blocks=frozenset({1}))
    assert of_teacher == FeatureSpec(blocks=frozenset({2, 5}))
    assert joined(network("resnet8", 2), teacher, teacher_bn="batch").prefixes([(False, True, True)])[1].blocks == set()


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": "bernoulli"}, "paths has no effect with form: single_path; set form: two_path"),
        ({"weight": 0.5}, "weight has no effect with form: single_path"),
        ({"form": "two_path", "granularity": "sample"}, "granularity has no effect with form: two_path"),
        ({"form": "two_path", "at_least_one_student": True}, "at_least_one_student has no effect"),
        (
            {"form": "two_path", "paths": "teacher_to_student", "schedule": {"slope": 0.2}},
            r"schedule\.slope has no effect with paths: teacher_to_student",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IakdOptions.model_validate(settings)


def test_one_slot_has_no_hybrid_path(teacher: models.Network) -> None:
    single = network("resnet8", seed=2)
    single.stages = nn.ModuleList([nn.Sequential(*single.blocks)])
    merged = network("resnet20", seed=1)
    merged.stages = nn.ModuleList([nn.Sequential(*merged.blocks)])
    with pytest.raises(UserError, match="paths that change networks need at least two"):
        joined(single, merged, unit="stage")
