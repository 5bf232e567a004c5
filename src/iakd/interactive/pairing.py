"""Which teacher blocks stand in for which student block."""

from collections.abc import Sequence
from dataclasses import dataclass

from iakd.errors import UserError
from iakd.models import Network
from iakd.models.network import Block


def group_sizes(teacher_blocks: int, student_blocks: int) -> list[int]:
    """Sizes of `student_blocks` contiguous groups of a stage's teacher blocks, as even as possible, smaller first."""
    size, larger = divmod(teacher_blocks, student_blocks)
    return [size] * (student_blocks - larger) + [size + 1] * larger


@dataclass(frozen=True)
class Pair:
    """One student block and the teacher blocks that do its work in the teacher."""

    stage: int
    student: Block
    teacher: Sequence[Block]

    @property
    def same_shape(self) -> bool:
        """Whether the teacher's group fits the student's place without an adapter."""
        return (self.student.in_channels, self.student.out_channels) == (
            self.teacher[0].in_channels,
            self.teacher[-1].out_channels,
        )


def pair_blocks(teacher: Network, student: Network) -> list[Pair]:
    """Pair the networks stage by stage, one entry per student block.

    Raises UserError where the numbers of stages differ or a teacher's stage has fewer blocks than the student's.
    """
    if len(teacher.stages) != len(student.stages):
        raise UserError(
            f"impossible pair: the teacher has {len(teacher.stages)} stages and the student {len(student.stages)}; "
            "choose networks with equally many"
        )
    pairs = []
    for number, (teacher_stage, student_stage) in enumerate(zip(teacher.stages, student.stages, strict=True)):
        theirs, ours = list(teacher_stage), list(student_stage)  # type: ignore[call-overload]
        if len(theirs) < len(ours):
            raise UserError(
                f"impossible pair: stage {number + 1} of the teacher has {len(theirs)} blocks and the student's "
                f"{len(ours)}; choose a deeper teacher or a shallower student"
            )
        start = 0
        for block, size in zip(ours, group_sizes(len(theirs), len(ours)), strict=True):
            pairs.append(Pair(number, block, theirs[start : start + size]))
            start += size
    return pairs
