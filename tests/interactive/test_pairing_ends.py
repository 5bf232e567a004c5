"""Where groups of blocks begin and end, what whole stages are, and which tokens and sizes of image go together."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from iakd import config, models
from iakd.errors import UserError
from iakd.models.network import Block
from iakd.models.pairing import BlockPair, levels, pair_blocks, whole_stages


def network(arch: str) -> models.Network:
    return models.build(config.Network(arch=arch), channels=3, classes=10)


def resnets() -> tuple[models.Network, list[BlockPair]]:
    """A teacher of 3 × 7 blocks for a student of 3 × 4."""
    teacher = network("resnet44")
    return teacher, pair_blocks(teacher, network("resnet26"))


def test_groups_know_their_first_and_last_block() -> None:
    teacher, pairs = resnets()
    assert [(pair.student.first, pair.student.last) for pair in pairs] == [(i, i) for i in range(12)]
    assert [(p.teacher.first, p.teacher.last) for p in pairs[:5]] == [(0, 0), (1, 2), (3, 4), (5, 6), (7, 7)]
    assert pairs[-1].teacher.last == len(teacher.blocks) - 1
    for before, after in pairwise(pairs):
        assert after.teacher.first == before.teacher.last + 1
        assert after.teacher.before == before.teacher.after and after.student.before == before.student.after


def test_shapes_before_and_after_a_group_are_those_that_the_network_gives() -> None:
    teacher, pairs = resnets()
    features = teacher.stem(torch.zeros(2, 3, 32, 32))
    for pair in pairs:
        assert pair.teacher.before == tuple(features.shape[1:])
        for block in pair.teacher.blocks:
            features = block(features)
        assert pair.teacher.after == tuple(features.shape[1:])


def test_levels_are_the_ends_of_the_stages() -> None:
    teacher, pairs = resnets()
    found = levels(teacher, network("resnet26"))
    assert [(pair.stage, pair.student.last, pair.teacher.last) for pair in found] == [
        (0, 3, 6),
        (1, 7, 13),
        (2, 11, 20),
    ]
    assert [(pair.student.after, pair.teacher.after) for pair in found] == [
        (pairs[i].student.after, pairs[i].teacher.after) for i in (3, 7, 11)
    ]


def test_levels_of_networks_with_other_numbers_of_stages_are_the_ends_of_paired_stages() -> None:
    longer = pyramid([[Keeping(4, 4)], *halvings(3), [Keeping(4, 4)]])  # 32, 16, 8, 4, 4
    shorter = pyramid(halvings(3, OtherHalving))
    assert [(pair.stage, pair.teacher.last, pair.student.last) for pair in levels(longer, shorter)] == [
        (0, 2, 1),
        (1, 4, 3),
        (2, 7, 5),
    ]


V, W = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)]
R = [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]


@pytest.mark.parametrize(
    ("teacher", "student", "theirs", "ours"),
    [
        ("vgg13", "vgg8", V, V),
        ("vgg13", "MobileNetV2", V, W),
        ("ResNet50", "MobileNetV2", R, W),
        ("ResNet50", "vgg8", R, V),
        ("wrn_40_2", "ShuffleV1", [(32, 32, 32), (64, 16, 16), (128, 8, 8)], [(240, 16, 16), (480, 8, 8), (960, 4, 4)]),
    ],
)
def test_levels_are_those_of_the_benchmark(
    teacher: str, student: str, theirs: list[tuple[int, ...]], ours: list[tuple[int, ...]]
) -> None:
    """RepDistiller's models/*.py, forward(is_feat=True), and helper/loops.py, which compares feat[1:-1]: VGG's f0 (64
    channels, 32×32) stands for the stem, and f3 and f4 are both 4×4.
    """
    found = levels(network(teacher), network(student))
    assert [pair.teacher.after for pair in found] == theirs
    assert [pair.student.after for pair in found] == ours
    ends = [(pair.teacher.last, pair.student.last) for pair in found]
    assert ends == sorted(set(ends))


def test_a_whole_stage_is_all_its_pairs() -> None:
    teacher, pairs = resnets()
    stages = whole_stages(pairs)
    assert [stage.stage for stage in stages] == [0, 1, 2]
    for number, stage in enumerate(stages):
        first, last = pairs[4 * number], pairs[4 * number + 3]
        assert list(stage.teacher.blocks) == list(teacher.stages[number])
        assert list(stage.student.blocks) == [
            block for pair in pairs[4 * number : 4 * number + 4] for block in pair.student.blocks
        ]
        for whole, begin, end in (
            (stage.student, first.student, last.student),
            (stage.teacher, first.teacher, last.teacher),
        ):
            assert (whole.first, whole.last) == (begin.first, end.last)
            assert (whole.before, whole.after) == (begin.before, end.after)


def test_a_stage_of_one_pair_is_that_pair() -> None:
    pairs = pair_blocks(network("resnet20"), network("resnet8"))
    assert whole_stages(pairs) == pairs


class Tokens(Block):
    """(B, N, C) → (B, N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * tokens


class OtherTokens(Tokens):
    """Of another kind."""


class Patches(nn.Module):
    """Images to tokens, a token per `side`×`side` pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, side, side)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).flatten(2).transpose(1, 2)


def transformer(depths: tuple[int, ...], side: int = 8, block: type[Block] = Tokens, size: int = 32) -> models.Network:
    stages = [[block(6, 6) for _ in range(depth)] for depth in depths]
    return models.Network(Patches(side), stages, nn.Linear(6, 10), size)


def test_transformers_are_paired_like_other_networks() -> None:
    pairs = pair_blocks(transformer((4,)), transformer((2,)))
    assert [len(pair.teacher.blocks) for pair in pairs] == [2, 2]
    assert all(pair.same_shape and pair.same_size for pair in pairs)
    assert pairs[0].student.before == (16, 6)


def test_transformers_of_other_patches_are_refused() -> None:
    with pytest.raises(UserError, match="the teacher has 16 tokens and the student 64; choose transformers"):
        pair_blocks(transformer((4,)), transformer((2,), side=4))


class Merging(Block):
    """Half as many tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, ::2]


def test_tokens_are_counted_after_the_last_block() -> None:
    merging, other = (models.Network(Patches(8), [[Tokens(6, 6), Merging(6, 6)]], nn.Linear(6, 10)) for _ in range(2))
    assert pair_blocks(merging, other)[-1].student.after == (8, 6)
    with pytest.raises(UserError, match="the teacher has 8 tokens and the student 16"):
        pair_blocks(merging, transformer((2,)))
    with pytest.raises(UserError, match="the teacher has 16 tokens and the student 8"):
        pair_blocks(transformer((2,)), merging)


@pytest.mark.parametrize("maps", ["teacher", "student"])
def test_maps_and_tokens_are_refused_in_both_directions(maps: str) -> None:
    pair = [network("resnet8"), transformer((3,))]
    tokens = "student" if maps == "teacher" else "teacher"
    with pytest.raises(UserError, match=f"the {maps}'s blocks return maps and the {tokens}'s tokens"):
        pair_blocks(*(pair if maps == "teacher" else pair[::-1]))


def test_without_an_image_it_is_as_large_as_the_larger_of_the_two_was_designed_for() -> None:
    small, large = transformer((2,), size=16), transformer((2,), size=64)
    for teacher, student in ((small, large), (large, small)):
        assert pair_blocks(teacher, student)[0].student.before == (64, 6)
    assert pair_blocks(small, large, image=(3, 32, 32))[0].student.before == (16, 6)


def test_a_student_may_have_more_blocks_of_another_kind_only() -> None:
    with pytest.raises(UserError, match="stage 1 of the teacher has 2 blocks and the student's 3"):
        pair_blocks(transformer((2,)), transformer((3,)))
    pairs = pair_blocks(transformer((2,)), transformer((3,), block=OtherTokens))
    assert [(len(pair.student.blocks), len(pair.teacher.blocks)) for pair in pairs] == [(1, 1), (2, 1)]


class Halving(Block):
    """Maps of half the size."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, :, ::2, ::2]


class Keeping(Block):
    """Maps as they come."""

    def forward(self, maps: Tensor) -> Tensor:
        return 2 * maps


class OtherHalving(Halving):
    """Of another kind."""


def pyramid(stages: list[list[Block]]) -> models.Network:
    return models.Network(nn.Conv2d(3, 4, 1), stages, nn.Linear(4, 10))


def halvings(count: int, first: type[Block] = Halving) -> list[list[Block]]:
    return [[first(4, 4), Keeping(4, 4)] for _ in range(count)]


def firsts(teacher: models.Network, student: models.Network) -> list[tuple[int, int, int]]:
    """Stage of the student, first block of the teacher's group, first of the student's."""
    return [(pair.stage, pair.teacher.first, pair.student.first) for pair in pair_blocks(teacher, student)]


def test_stages_of_the_longer_network_go_with_the_first_that_is_no_larger() -> None:
    """Teacher 32, 16, 8, 4, 4 and student 16, 8, 4: the teacher's first two stages go together, and its last two."""
    longer = pyramid([[Keeping(4, 4)], *halvings(3), [Keeping(4, 4)]])
    shorter = pyramid(halvings(3, OtherHalving))
    assert firsts(longer, shorter) == [(0, 0, 0), (0, 1, 1), (1, 3, 2), (1, 4, 3), (2, 5, 4), (2, 6, 5)]
    # the other way round, a pair is known by the first of the student's stages in it
    assert firsts(shorter, longer) == [(0, 0, 0), (0, 1, 1), (2, 2, 3), (2, 3, 4), (3, 4, 5), (3, 5, 6)]


def test_smaller_maps_than_any_go_with_the_last_stage() -> None:
    longer, shorter = pyramid(halvings(4)), pyramid(halvings(3))
    pairs = pair_blocks(longer, shorter)
    assert [len(pair.teacher.blocks) for pair in pairs] == [1, 1, 1, 1, 2, 2]


def test_a_stage_without_partner_is_named_with_all_sizes() -> None:
    longer, shorter = pyramid([[Keeping(4, 4)] for _ in range(4)]), pyramid(halvings(3))
    words = r"the {} has 4 stages and the {} 3, and none of .* stage 2 of .* \(sizes 32, 32, 32, 32 and 16, 8, 4\)"
    with pytest.raises(UserError, match=words.format("teacher", "student")):
        pair_blocks(longer, shorter)
    with pytest.raises(UserError, match=words.format("student", "teacher")):
        pair_blocks(shorter, longer)
