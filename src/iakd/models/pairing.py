"""The pairing of student and teacher blocks; docs/networks.md explains the rules with examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby

from torch import nn

from iakd.errors import UnsuitableSettings
from iakd.models import Network
from iakd.models.network import Block
from iakd.models.quantisation import only_if_quantised, start_lower_bits
from iakd.models.shapes import Shape, feature_shapes, image_channels


def group_sizes(blocks: int, groups: int) -> list[int]:
    """Return the sizes of `groups` contiguous groups of `blocks` blocks, as even as possible, smaller first."""
    size, more = divmod(blocks, groups)
    return [size] * (groups - more) + [size + 1] * more


@dataclass(frozen=True)
class BlockGroup:
    """Consecutive blocks of one network, with the shapes of one image's features before and after them."""

    first: int  # index of its first block in the network
    blocks: Sequence[Block]
    before: Shape
    after: Shape

    @property
    def last(self) -> int:
        """Index of its last block in the network."""
        return self.first + len(self.blocks) - 1


@dataclass(frozen=True)
class BlockPair:
    """A block slot: student blocks (usually one), and the teacher blocks that can replace them."""

    stage: int  # of the student, from 0
    student: BlockGroup
    teacher: BlockGroup

    @property
    def same_shape(self) -> bool:
        """Whether the teacher's blocks fit into the student without an adapter."""
        return (self.student.before, self.student.after) == (self.teacher.before, self.teacher.after)

    @property
    def same_size(self) -> bool:
        """Whether maps have the same height and width in both networks, whatever their channels."""
        return all(
            _size(student) == _size(teacher)
            for student, teacher in (
                (self.student.before, self.teacher.before),
                (self.student.after, self.teacher.after),
            )
        )


def pair_blocks(teacher: Network, student: Network, image: Shape | None = None) -> list[BlockPair]:
    """Pair the blocks of two networks stage by stage, from the first student block to the last.

    Shapes are for an image of shape `image` (channels, height, width); default: as large as the networks were designed
    for. Raises UnsuitableSettings, with the reason, for an impossible pair.
    """
    teacher_shapes, student_shapes = _shapes(teacher, student, image)
    _check_features(teacher_shapes[-1], student_shapes[-1])
    teacher_stages, student_stages = _stages(teacher, teacher_shapes), _stages(student, student_shapes)
    pairs = []
    for stage, teacher_blocks, student_blocks in _align_stages(teacher_stages, student_stages):
        if (
            len(teacher_blocks) < len(student_blocks)
            and teacher.blocks[teacher_blocks[0]].kind is student.blocks[student_blocks[0]].kind
        ):
            raise UnsuitableSettings(
                f"impossible pair: stage {stage + 1} of the teacher has {len(teacher_blocks)} blocks and the student's "
                f"{len(student_blocks)}; choose a deeper teacher or a shallower student"
            )
        slots = min(len(teacher_blocks), len(student_blocks))
        for teacher_group, student_group in zip(
            _groups(teacher_blocks, slots), _groups(student_blocks, slots), strict=True
        ):
            pairs.append(
                BlockPair(
                    stage,
                    _group(student, student_group, student_shapes),
                    _group(teacher, teacher_group, teacher_shapes),
                )
            )
    return pairs


def levels(teacher: Network, student: Network, image: Shape | None = None) -> list[BlockPair]:
    """Return where features of two networks are compared: at the ends of these pairs of block groups.

    If both have equally many `level_blocks`, after the first of both, and so on. Otherwise at the ends of the paired
    stages. Raises UnsuitableSettings for an impossible pair.
    """
    pairs = pair_blocks(teacher, student, image)
    if len(teacher.level_blocks) != len(student.level_blocks):
        following = [*(pair.stage for pair in pairs[1:]), None]
        return [pair for pair, stage in zip(pairs, following, strict=True) if pair.stage != stage]
    teacher_shapes, student_shapes = _shapes(teacher, student, image)
    stages = [stage for stage, (blocks, _) in enumerate(_stages(student, student_shapes)) for _ in blocks]
    return [
        BlockPair(stages[student_group.last], student_group, teacher_group)
        for student_group, teacher_group in zip(
            _level_groups(student, student_shapes), _level_groups(teacher, teacher_shapes), strict=True
        )
    ]


def whole_stages(pairs: Sequence[BlockPair]) -> list[BlockPair]:
    """Merge all pairs of each student stage into one."""
    stages = [list(members) for _, members in groupby(pairs, key=lambda pair: pair.stage)]
    return [
        BlockPair(
            members[0].stage, _merge([pair.student for pair in members]), _merge([pair.teacher for pair in members])
        )
        for members in stages
    ]


def _merge(groups: list[BlockGroup]) -> BlockGroup:
    blocks = [block for group in groups for block in group.blocks]
    return BlockGroup(groups[0].first, blocks, groups[0].before, groups[-1].after)


def _shapes(teacher: Network, student: Network, image: Shape | None) -> tuple[list[Shape], list[Shape]]:
    side = max(teacher.size, student.size)
    image = image or (image_channels(student), side, side)
    return feature_shapes(teacher, image), feature_shapes(student, image)


def _check_features(teacher: Shape, student: Shape) -> None:
    if len(teacher) != len(student):
        maps, tokens = ("teacher", "student") if len(teacher) == 3 else ("student", "teacher")
        raise UnsuitableSettings(
            f"impossible pair: the {maps}'s blocks return maps and the {tokens}'s tokens; "
            "choose two convolutional networks or two transformers"
        )
    if len(teacher) == 2 and teacher[0] != student[0]:
        raise UnsuitableSettings(
            f"impossible pair: the teacher has {teacher[0]} tokens and the student {student[0]}; "
            "choose transformers with patches of the same size"
        )


def copy_weights(source: nn.Module, target: nn.Module, what: str) -> None:
    """Copy parameters and buffers; a quantised target keeps its ranges, and starts alike at all bit-widths.

    Raises UnsuitableSettings, naming `what`, where the shapes differ.
    """
    if not weights_fit(source, target):
        raise UnsuitableSettings(
            f"the teacher's {what} does not fit the student (the shapes differ): choose networks of equal width, "
            "or keep the student's own"
        )
    target.load_state_dict(source.state_dict(), strict=False)
    start_lower_bits(target)


def weights_fit(source: nn.Module, target: nn.Module) -> bool:
    """Return whether `copy_weights` can copy the parameters and buffers of `source` to `target`."""
    given = source.state_dict()
    needed = {k: v for k, v in target.state_dict().items() if k in given or not only_if_quantised(k)}
    return {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in needed.items()}


def initialise_from_teacher(student: Network, teacher: Network) -> None:
    """Copy the weights of the teacher's stem, head and first block of each group to the student.

    Raises UnsuitableSettings where shapes differ or the teacher has too few blocks.
    """
    pairs = pair_blocks(teacher, student)
    if any(len(pair.student.blocks) > 1 for pair in pairs):
        raise UnsuitableSettings("init: teacher needs a teacher block for each student block; this teacher has fewer")
    copy_weights(teacher.stem, student.stem, "stem")
    for position, pair in enumerate(pairs):
        copy_weights(pair.teacher.blocks[0], pair.student.blocks[0], f"block for student block {position + 1}")
    copy_weights(teacher.head, student.head, "head")


Stage = tuple[Sequence[int], int]  # indices of a stage's blocks in the network, and the height of its maps


def _stages(network: Network, shapes: list[Shape]) -> list[Stage]:
    ends = list(accumulate(len(stage) for stage in network.stages))  # type: ignore[arg-type]
    starts = [0, *ends[:-1]]
    return [(range(start, end), _size(shapes[end])[0]) for start, end in zip(starts, ends, strict=True)]


def _align_stages(teacher: list[Stage], student: list[Stage]) -> list[tuple[int, Sequence[int], Sequence[int]]]:
    """Return student stage, teacher blocks, student blocks, for each two stages that correspond.

    Networks with equally many stages: the first with the first, and so on. Otherwise stages of the network with more of
    them are merged: each goes to the first stage of the other network whose maps are no larger, the smallest ones to
    the last.
    """
    if len(teacher) == len(student):
        return [(i, *both) for i, both in enumerate(zip(_blocks(teacher), _blocks(student), strict=True))]
    more, fewer = (teacher, student) if len(teacher) > len(student) else (student, teacher)
    names = ("teacher", "student") if more is teacher else ("student", "teacher")
    partners: list[list[int]] = [[] for _ in fewer]
    for position, (_, size) in enumerate(more):
        fitting = [i for i, (_, other) in enumerate(fewer) if other <= size]
        partners[fitting[0] if fitting else -1].append(position)
    for stage, positions in enumerate(partners):
        if not positions:
            raise UnsuitableSettings(
                f"impossible pair: the {names[0]} has {len(more)} stages and the {names[1]} {len(fewer)}, and none of "
                f"the {names[0]}'s has maps for stage {stage + 1} of the {names[1]} "
                f"(sizes {', '.join(str(size) for _, size in more)} and {', '.join(str(size) for _, size in fewer)}); "
                "choose networks with equally many stages"
            )
    merged = [list(chain.from_iterable(more[p][0] for p in positions)) for positions in partners]
    if more is teacher:
        return [(i, *both) for i, both in enumerate(zip(merged, _blocks(student), strict=True))]
    return [(p[0], *both) for p, both in zip(partners, zip(_blocks(teacher), merged, strict=True), strict=True)]


def _blocks(stages: list[Stage]) -> list[Sequence[int]]:
    return [blocks for blocks, _ in stages]


def _groups(blocks: Sequence[int], count: int) -> list[Sequence[int]]:
    ends = list(accumulate(group_sizes(len(blocks), count)))
    return [blocks[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _group(network: Network, positions: Sequence[int], shapes: list[Shape]) -> BlockGroup:
    blocks = network.blocks
    first, last = positions[0], positions[-1]
    return BlockGroup(first, [blocks[position] for position in positions], shapes[first], shapes[last + 1])


def _level_groups(network: Network, shapes: list[Shape]) -> list[BlockGroup]:
    firsts = [0, *(last + 1 for last in network.level_blocks[:-1])]
    return [
        _group(network, range(first, last + 1), shapes)
        for first, last in zip(firsts, network.level_blocks, strict=True)
    ]


def _size(shape: Shape) -> Shape:
    """Return height and width of a map; of tokens, their number."""
    return shape[1:] if len(shape) == 3 else shape[:1]
