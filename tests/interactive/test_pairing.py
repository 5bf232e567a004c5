"""Which blocks belong together: contiguous groups, as even as possible, smaller first; stages by number or by size."""

import pytest

from iakd import config, models
from iakd.errors import UserError
from iakd.models.pairing import group_sizes, pair_blocks


@pytest.mark.parametrize(
    ("teacher", "student", "sizes"),
    [(7, 4, [1, 2, 2, 2]), (9, 3, [3, 3, 3]), (18, 5, [3, 3, 4, 4, 4]), (5, 1, [5]), (6, 2, [3, 3]), (3, 3, [1, 1, 1])],
)
def test_sizes_of_groups(teacher: int, student: int, sizes: list[int]) -> None:
    assert group_sizes(teacher, student) == sizes


def network(arch: str, **options: object) -> models.Network:
    return models.build(config.Network(arch=arch, **options), channels=3, classes=10)


@pytest.mark.parametrize(
    ("teacher", "student", "sizes"),
    [
        ("resnet44", "resnet26", [1, 2, 2, 2]),
        ("resnet56", "resnet20", [3, 3, 3]),
        ("resnet110", "resnet32", [3, 3, 4, 4, 4]),
        ("resnet32x4", "resnet8x4", [5]),
        ("wrn_40_2", "wrn_16_2", [3, 3]),
    ],
)
def test_groups_cover_the_teacher_in_order_and_begin_with_the_reducing_block(
    teacher: str, student: str, sizes: list[int]
) -> None:
    net = network(teacher)
    pairs = pair_blocks(net, network(student))
    assert [len(pair.teacher.blocks) for pair in pairs] == sizes * 3
    assert [block for pair in pairs for block in pair.teacher.blocks] == net.blocks
    for stage in range(3):
        first = next(pair for pair in pairs if pair.stage == stage)
        assert first.teacher.blocks[0] is net.stages[stage][0]
    assert all(pair.same_shape for pair in pairs)


def test_unequal_widths_are_seen() -> None:
    pairs = pair_blocks(network("resnet20"), network("resnet8", width=8))
    assert not any(pair.same_shape for pair in pairs)
    assert all(pair.same_size for pair in pairs)


def test_unequal_sizes_are_seen() -> None:
    """Stage by stage the teacher's maps are twice the student's, but both begin with the whole image."""
    teacher, student = network("resnet8x4"), network("ShuffleV2")
    first, *_, last = pair_blocks(teacher, student)
    assert not first.same_size and not last.same_size
    assert (first.student.before, first.student.after) == ((24, 32, 32), (116, 16, 16))
    assert (first.teacher.before, first.teacher.after) == ((32, 32, 32), (64, 32, 32))
    assert all(pair.same_size for pair in pair_blocks(network("ResNet50"), network("vgg8")))


def test_shapes_are_those_of_the_image_at_hand() -> None:
    pairs = pair_blocks(network("resnet20"), network("resnet8"), image=(3, 9, 13))
    assert [pair.student.after for pair in pairs] == [(16, 9, 13), (32, 5, 7), (64, 3, 4)]


@pytest.mark.parametrize(
    ("teacher", "student"), [("vgg13", "MobileNetV2"), ("ResNet50", "MobileNetV2"), ("resnet32x4", "ShuffleV1")]
)
def test_where_the_student_has_more_blocks_they_are_swapped_together(teacher: str, student: str) -> None:
    theirs, ours = network(teacher), network(student)
    pairs = pair_blocks(theirs, ours)
    assert [block for pair in pairs for block in pair.student.blocks] == ours.blocks
    assert [block for pair in pairs for block in pair.teacher.blocks] == theirs.blocks
    for number, (their_stage, our_stage) in enumerate(zip(theirs.stages, ours.stages, strict=True)):
        inside = [pair for pair in pairs if pair.stage == number]
        assert len(inside) == min(len(their_stage), len(our_stage))
        assert all(len(pair.student.blocks) == 1 or len(pair.teacher.blocks) == 1 for pair in inside)
        assert inside[0].student.blocks[0] is our_stage[0]
        assert inside[0].teacher.blocks[0] is their_stage[0]


def test_more_teacher_stages_than_the_students_go_with_those_of_their_size() -> None:
    teacher, student = network("ResNet50"), network("resnet20")  # maps of 32, 16, 8, 4 and of 32, 16, 8
    pairs = pair_blocks(teacher, student)
    assert [block for pair in pairs for block in pair.teacher.blocks] == teacher.blocks
    assert [sum(len(p.teacher.blocks) for p in pairs if p.stage == stage) for stage in range(3)] == [3, 4, 6 + 3]


def test_more_student_stages_than_the_teachers_go_with_those_of_their_size() -> None:
    """ResNet-18 with maps of 56, 28, 14, 7; MobileNetV2 with 112, 56, 28, 14, 7, of which the first two go together."""
    teacher, student = network("torchvision/resnet18"), network("torchvision/mobilenet_v2")
    pairs = pair_blocks(teacher, student)
    assert [block for pair in pairs for block in pair.student.blocks] == student.blocks
    together = [pair for pair in pairs if pair.student.first < 3]
    assert [block for pair in together for block in pair.teacher.blocks] == list(teacher.stages[0])
    assert sum(len(pair.student.blocks) for pair in together) == 1 + 2


def test_a_student_deeper_than_its_teacher_is_refused_where_they_are_of_one_kind() -> None:
    with pytest.raises(UserError, match="stage 1 of the teacher has 1 blocks and the student's 3"):
        pair_blocks(network("resnet8"), network("resnet20"))
    with pytest.raises(UserError, match="stage 1 of the teacher has 2 blocks and the student's 6"):
        pair_blocks(network("wrn_16_2"), network("wrn_40_1"))


@pytest.mark.parametrize(("teacher", "student"), [("resnet20", "MobileNetV2"), ("torchvision/resnet18", "resnet8")])
def test_stages_without_a_partner_of_their_size_are_refused(teacher: str, student: str) -> None:
    with pytest.raises(UserError, match=r"has 4 stages and the (student|teacher) 3, and none of .* \(sizes "):
        pair_blocks(network(teacher), network(student))


def test_maps_and_tokens_cannot_be_swapped() -> None:
    with pytest.raises(UserError, match="the student's blocks return maps and the teacher's tokens"):
        pair_blocks(network("torchvision/vit_b_32"), network("torchvision/resnet18"))
