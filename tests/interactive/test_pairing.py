"""The pairing tables of METHODS: contiguous groups, as even as possible, smaller first."""

import pytest

from iakd import models, params
from iakd.errors import UserError
from iakd.interactive.pairing import group_sizes, pair_blocks


@pytest.mark.parametrize(
    ("teacher", "student", "sizes"),
    [(7, 4, [1, 2, 2, 2]), (9, 3, [3, 3, 3]), (18, 5, [3, 3, 4, 4, 4]), (5, 1, [5]), (6, 2, [3, 3]), (3, 3, [1, 1, 1])],
)
def test_sizes_of_groups(teacher: int, student: int, sizes: list[int]) -> None:
    assert group_sizes(teacher, student) == sizes


def network(arch: str, **options: object) -> models.Network:
    return models.build(params.Network(arch=arch, **options), channels=3, classes=10)


@pytest.mark.parametrize(
    ("teacher", "student", "sizes"),
    [
        ("resnet44", "resnet26", [1, 2, 2, 2]),
        ("resnet56", "resnet20", [3, 3, 3]),
        ("resnet110", "resnet32", [3, 3, 4, 4, 4]),
        ("resnet32x4", "resnet8x4", [5]),
    ],
)
def test_groups_cover_the_teacher_in_order_and_begin_with_the_reducing_block(
    teacher: str, student: str, sizes: list[int]
) -> None:
    net = network(teacher)
    pairs = pair_blocks(net, network(student))
    assert [len(pair.teacher) for pair in pairs] == sizes * 3
    assert [block for pair in pairs for block in pair.teacher] == net.blocks
    for stage in range(3):
        first = next(pair for pair in pairs if pair.stage == stage)
        assert first.teacher[0] is net.stages[stage][0]
    assert all(pair.same_shape for pair in pairs)


def test_unequal_widths_are_seen() -> None:
    pairs = pair_blocks(network("resnet20"), network("resnet8", width=8))
    assert not any(pair.same_shape for pair in pairs)


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="stage 1 of the teacher has 1 blocks and the student's 3"):
        pair_blocks(network("resnet8"), network("resnet20"))
