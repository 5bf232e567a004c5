"""The hybrid network: student blocks with teacher blocks swapped in.

IAKD (Fu et al., Interactive Knowledge Distillation, Neurocomputing 449, 2021) gives the idea of swapping; keep
variables drawn once per step for the whole batch follow BERT-of-Theseus (Xu et al. 2020). See docs/method.md.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config import IakdOptions, Schedule
from iakd.devices import to_device
from iakd.errors import UserError
from iakd.interactive.swap_sampler import ChannelSwapSampler, KeepMask, SampleSwapSampler, SwapSampler
from iakd.models import Network
from iakd.models.features import LOGITS, BlockSlot, Features, FeatureSpec, forward_slots
from iakd.models.network import initialise
from iakd.models.normalisation import entry
from iakd.models.pairing import BlockPair, pair_blocks, whole_stages
from iakd.models.quantisation import QUANTISER
from iakd.models.shapes import Shape, channels
from iakd.seeding import derive
from iakd.training.timeline import Timeline


class TeacherBranch(nn.Module):
    """A teacher's group of blocks in the place of the student's, between adapters where the numbers of channels differ.

    The teacher's blocks are kept out of the module tree: they are neither trained nor saved.
    """

    def __init__(self, pair: BlockPair, blocks: nn.Module) -> None:
        super().__init__()
        self._teacher = (blocks,)
        self.enter = _adapter(pair, pair.student.blocks[0].in_channels, pair.teacher.blocks[0].in_channels)
        self.leave = _adapter(pair, pair.teacher.blocks[-1].out_channels, pair.student.blocks[-1].out_channels)

    @property
    def teacher(self) -> nn.Module:
        """The frozen blocks."""
        return self._teacher[0]

    def forward(self, features: Tensor, sizes: tuple[Shape, Shape] | None = None) -> Tensor:
        """`sizes`: heights and widths that the teacher's blocks expect and that the student's would give."""
        if sizes is None:
            return self.leave(self.teacher(self.enter(features)))
        features = self.teacher(_fitted(self.enter, features, sizes[0]))
        return _fitted(self.leave, features, sizes[1])


def _adapter(pair: BlockPair, in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    if len(pair.student.before) == 2:  # tokens
        return nn.Sequential(nn.Linear(in_channels, out_channels, bias=False), nn.LayerNorm(out_channels))
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def _fitted(adapter: nn.Module, features: Tensor, size: Shape) -> Tensor:
    """Adapt the channels and bring maps to another size, by means or by repetition; the costly part on small maps."""
    height, width = features.shape[2:]
    if (height, width) == size:
        return adapter(features)
    if height % size[0] == 0 and width % size[1] == 0:
        return adapter(F.avg_pool2d(features, (height // size[0], width // size[1])))
    return F.interpolate(adapter(features), size=size, mode="nearest")


def _frozen_copy(module: nn.Module, batch_statistics: bool) -> nn.Module:
    """A copy for use inside the hybrid, so that its mode is independent of the teacher's own forward pass."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    if batch_statistics:  # train mode without tracking: the batch's statistics, buffers untouched
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
                layer.track_running_stats = False
    return module


def mix_branches(
    student: Sequence[nn.Module], teacher: Callable[[Tensor], Tensor], kept: Tensor, features: Tensor
) -> Tensor:
    """A place that both networks have a part in.

    `kept` bool (B,): which images go through the student's blocks; the others go through the teacher's, none through
    both. `kept` float (C,): the student's weight in each channel of what both compute.
    """
    ours = nn.Sequential(*student)
    if kept.is_floating_point():
        weights = to_device(kept, features.device)
        theirs, own = teacher(features), ours(features)
        return theirs + (own - theirs) * (weights.view(-1, 1, 1) if own.dim() == 4 else weights)
    order = torch.cat([kept.nonzero().flatten(), (~kept).nonzero().flatten()])
    own_count = int(kept.sum())  # `kept` is on the CPU
    there, back = to_device(order, features.device), to_device(order.argsort(), features.device)
    sorted_features = features.index_select(0, there)
    outcome = torch.cat([ours(sorted_features[:own_count]), teacher(sorted_features[own_count:])])
    return outcome.index_select(0, back)


class Hybrid:
    """The student with blocks of a frozen teacher swapped in; only the chosen branch of a block is computed."""

    def __init__(
        self,
        student: Network,
        teacher: Network,
        settings: IakdOptions,
        schedule: Schedule,
        timeline: Timeline,
        seed: int,
    ) -> None:
        self.student = student
        self._teacher = teacher
        self._unit = settings.unit
        self._pairs = pairs = self._paired()
        self._sizes_of: dict[Shape, list[tuple[Shape, Shape] | None]] = {}  # of an image of this shape
        batch_statistics = settings.teacher_bn == "batch"
        groups: list[list[nn.Module]] = [list(pair.teacher.blocks) for pair in pairs]
        groups[0][:0] = entry(student, teacher)
        self._places = [
            TeacherBranch(pair, _frozen_copy(nn.Sequential(*group), batch_statistics))
            for pair, group in zip(pairs, groups, strict=True)
        ]
        self.swapped = nn.ModuleList(self._places)
        generator = torch.Generator().manual_seed(derive("adapters", seed))
        initialise(self.swapped, generator)
        self.swapped.to(next(student.parameters()).device)
        self.frozen: list[nn.Module] = []
        for name, choice in (("stem", settings.stem), ("head", settings.head)):
            if choice == "teacher":
                copy_weights(getattr(teacher, name), getattr(student, name), name)
                self.frozen.append(getattr(student, name).requires_grad_(False))
        at_least_one = settings.at_least_one_student
        if at_least_one is None:
            at_least_one = len(self.frozen) == 2  # nothing would be left to train in a step without student blocks
        self.draws = self._draws(settings.granularity, schedule, timeline, seed, at_least_one)

    def _paired(self, image: Shape | None = None) -> list[BlockPair]:
        pairs = pair_blocks(self._teacher, self.student, image)
        return whole_stages(pairs) if self._unit == "stage" else pairs

    def _draws(
        self, granularity: str, schedule: Schedule, timeline: Timeline, seed: int, at_least_one: bool
    ) -> SwapSampler:
        common = (schedule, timeline, len(self._pairs), seed)
        match granularity:
            case "sample":
                return SampleSwapSampler(*common, at_least_one, timeline.batch_size)
            case "channel":
                return ChannelSwapSampler(*common, [channels(pair.student.after) for pair in self._pairs])
            case _:
                return SwapSampler(*common, at_least_one)

    def __call__(self, images: Tensor, kept: Sequence[KeepMask]) -> Tensor:
        """Logits (B, classes) of head ∘ H_L ∘ … ∘ H_1 ∘ enter, H_i the student's where kept[i]."""
        logits = self.walk(images, kept, LOGITS).logits
        assert logits is not None
        return logits

    def walk(self, images: Tensor, kept: Sequence[KeepMask], needs: FeatureSpec) -> Features:
        """What is needed of the hybrid's forward pass.

        Features after a block that is not the last of its pair are there only where the student's is kept.
        """
        sizes = self._sizes(tuple(images.shape[1:]))
        return forward_slots(self.student, images, self._chosen(kept, sizes), needs)

    def require(self, needs: FeatureSpec) -> None:
        """Raise UserError where a walk would not always have what is needed: features inside what is swapped as one."""
        inside = (needs.blocks | needs.preactivations) - {pair.student.last for pair in self._pairs}
        if inside:
            raise UserError(
                f"iakd.unit: {self._unit}: the added loss looks at the student's block {min(inside) + 1}, which is "
                "swapped together with the ones after it; set iakd.unit: block, or iakd.path: student"
            )

    def _chosen(self, kept: Sequence[KeepMask], sizes: list[tuple[Shape, Shape] | None]) -> Iterator[BlockSlot]:
        for pair, swapped, size, keep in zip(self._pairs, self._places, sizes, kept, strict=True):
            theirs = partial(swapped, sizes=size)
            if keep is True:
                yield from enumerate(pair.student.blocks, pair.student.first)
            elif keep is False:
                yield pair.student.last, theirs
            else:
                yield pair.student.last, partial(mix_branches, pair.student.blocks, theirs, keep)

    def _sizes(self, image: Shape) -> list[tuple[Shape, Shape] | None]:
        """What each place fits maps to, for images of this shape; None where both networks' maps are of one size."""
        if all(pair.same_size for pair in self._pairs):
            return [None] * len(self._pairs)
        if image not in self._sizes_of:
            pairs = self._paired(image)
            self._sizes_of[image] = [
                None if pair.same_size else (pair.teacher.before[1:], pair.student.after[1:]) for pair in pairs
            ]
        return self._sizes_of[image]

    def train(self) -> None:
        """Student and adapters in training mode, copied parts in evaluation mode, like the teacher they came from."""
        self.student.train()
        for module in self.frozen:
            module.eval()
        for swapped in self._places:
            swapped.enter.train()
            swapped.leave.train()

    def modules(self) -> Iterable[nn.Module]:
        """The groups of teacher blocks that are swapped in, and the adapters around them."""
        for swapped in self._places:
            yield swapped.teacher
            yield swapped

    def parameters(self) -> Iterable[nn.Parameter]:
        """Those of the adapters, which exist only while training."""
        return self.swapped.parameters()


def copy_weights(source: nn.Module, target: nn.Module, what: str) -> None:
    """Copy parameters and buffers; a target of fewer bits keeps its ranges.

    Raises UserError, naming `what`, where the shapes differ.
    """
    theirs = source.state_dict()
    ours = {k: v for k, v in target.state_dict().items() if k in theirs or not k.endswith(QUANTISER)}
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in ours.items()}:
        raise UserError(
            f"the teacher's {what} does not fit the student's (shapes differ); take networks of equal width, "
            f"or keep the student's own"
        )
    target.load_state_dict(theirs, strict=False)


def initialise_from_teacher(student: Network, teacher: Network) -> None:
    """Give the student the teacher's stem, head and the first block of each paired group.

    Only numbers are copied, so the student's blocks stay trainable and in their own mode.
    """
    pairs = pair_blocks(teacher, student)
    if any(len(pair.student.blocks) > 1 for pair in pairs):
        raise UserError("init: teacher needs a teacher block for each student block; this teacher has fewer")
    copy_weights(teacher.stem, student.stem, "stem")
    for position, pair in enumerate(pairs):
        copy_weights(pair.teacher.blocks[0], pair.student.blocks[0], f"block for student block {position + 1}")
    copy_weights(teacher.head, student.head, "head")
