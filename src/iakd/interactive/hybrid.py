"""The hybrid network: a student with blocks of a frozen teacher swapped in.

Swapping is the idea of IAKD (Fu et al., Interactive Knowledge Distillation, Neurocomputing 449, 2021). Drawing the
swaps once per step for the whole batch follows BERT-of-Theseus (Xu et al. 2020). See docs/method.md.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iakd.config import IakdOptions, Schedule
from iakd.devices import to_device
from iakd.errors import UnsuitableSettings, UserError
from iakd.interactive.paths import Path
from iakd.interactive.swap_sampler import KeepMask, SwapSampler, make_swap_sampler
from iakd.models import Network
from iakd.models.features import LOGITS, BlockSlot, Features, FeatureSpec, forward_slots
from iakd.models.network import Frozen, initialise
from iakd.models.normalisation import input_conversion
from iakd.models.pairing import BlockPair, copy_weights, pair_blocks, whole_stages
from iakd.models.shapes import Shape, call_on_meta, channels
from iakd.seeding import derive
from iakd.training.timeline import Timeline

Sizes = tuple[Shape, Shape] | None
"""(height, width) before the teacher's blocks and after the student's; None where both networks' maps are alike."""


class TeacherBranch(nn.Module):
    """A teacher's group of blocks for use in the student, with adapters where the numbers of channels differ.

        features (B, C_s, …) → enter → teacher's blocks (frozen) → leave → (B, C_s', …)

    The adapters (1×1 convolution and BatchNorm, or linear and LayerNorm for tokens) are trained, and discarded with the
    hybrid. The teacher's blocks are neither trained nor saved.
    """

    def __init__(self, pair: BlockPair, blocks: nn.Module, batch_statistics: bool = False) -> None:
        super().__init__()
        self.enter = make_adapter(pair, pair.student.blocks[0].in_channels, pair.teacher.blocks[0].in_channels)
        self.teacher = Frozen(blocks, batch_statistics)
        self.leave = make_adapter(pair, pair.teacher.blocks[-1].out_channels, pair.student.blocks[-1].out_channels)

    def forward(self, features: Tensor, sizes: Sizes = None) -> Tensor:
        """`sizes`: (height, width) that the teacher's blocks expect, and that the student's blocks would return."""
        return self.to_student(self.teacher(self.to_teacher(features, sizes)), sizes)

    def to_teacher(self, features: Tensor, sizes: Sizes = None) -> Tensor:
        """The student's features before this slot, in the shape that the teacher's blocks expect."""
        return self.enter(features) if sizes is None else resized(self.enter, features, sizes[0])

    def to_student(self, features: Tensor, sizes: Sizes = None) -> Tensor:
        """The features after the teacher's blocks, in the shape of the student's."""
        return self.leave(features) if sizes is None else resized(self.leave, features, sizes[1])


def make_adapter(pair: BlockPair, in_channels: int, out_channels: int) -> nn.Module:
    """Return what adapts features at one end of a slot to another number of channels; the identity if it is equal."""
    if in_channels == out_channels:
        return nn.Identity()
    if len(pair.student.before) == 2:  # tokens
        return nn.Sequential(nn.Linear(in_channels, out_channels, bias=False), nn.LayerNorm(out_channels))
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def resized(adapter: nn.Module, features: Tensor, size: Shape) -> Tensor:
    """Adapt the channels and resize maps to (height, width), by pooling or repetition.

    The adapter works on the smaller maps.
    """
    height, width = features.shape[2:]
    if (height, width) == size:
        return adapter(features)
    if height % size[0] == 0 and width % size[1] == 0:
        return adapter(F.avg_pool2d(features, (height // size[0], width // size[1])))
    return F.interpolate(adapter(features), size=size, mode="nearest")


def mix_branches(
    student: Sequence[nn.Module], teacher: Callable[[Tensor], Tensor], kept: Tensor, features: Tensor
) -> Tensor:
    """The output of a block slot to which both networks contribute.

    `kept` bool (B,): images that go through the student's blocks; the others go through the teacher's, none through
    both. `kept` float (C,): the student's weight in each channel of what both compute.
    """
    student_blocks = nn.Sequential(*student)
    if kept.is_floating_point():
        weights = to_device(kept, features.device)
        theirs, own = teacher(features), student_blocks(features)
        return theirs + (own - theirs) * (weights.view(-1, 1, 1) if own.dim() == 4 else weights)
    order = torch.cat([kept.nonzero().flatten(), (~kept).nonzero().flatten()])
    student_count = int(kept.sum())  # `kept` is on the CPU
    forth, back = to_device(order, features.device), to_device(order.argsort(), features.device)
    grouped = features.index_select(0, forth)
    output = torch.cat([student_blocks(grouped[:student_count]), teacher(grouped[student_count:])])
    return output.index_select(0, back)


class Hybrid(nn.Module):
    """A student with blocks of a frozen teacher swapped in; gradients flow through the teacher's blocks.

    Single-path form (`forward`): head ∘ H_L ∘ … ∘ H_1 ∘ stem of the student, where H_i is the student's i-th block or
    the teacher's in its place, between adapters.

        images ─ stem ─┬─ S_1 ─┬──┬─ S_2 ─┬── … ─ head ─ logits
                       └─ T_1 ─┘  └─ T_2 ─┘              one branch of each slot is computed

    Two-path form (`forward_path`): a path through both networks, with adapters only where it changes from one to the
    other. The stem is that of the first block's network, the head that of the last block's. What comes before the
    first change is the forward pass of one of the networks, and is not computed again.

        teacher:  stem ─ T_1 ─ T_2 ─┐                  ┌─ T_5 ─ head ─ logits
        student:                    └─ S_3 ─ S_4 ──────┘

    The teacher's parameters get no gradient.
    """

    def __init__(self, student: Network, teacher: Network, options: IakdOptions, seed: int) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # for its shapes; not a submodule
        self.options = options
        self.pairs = self._pair()
        self._sizes_of: dict[Shape, list[Sizes]] = {}  # by shape of an image
        groups: list[list[nn.Module]] = [list(pair.teacher.blocks) for pair in self.pairs]
        # copies, so that their mode is independent of the teacher's own forward pass
        batch_statistics = options.teacher_bn == "batch"
        ends: dict[str, nn.Module] = {}
        if options.form == "two_path":
            if len(self.pairs) < 2:
                raise UnsuitableSettings(
                    f"paths that change networks need at least two {options.unit}s to swap, and this pair has one; "
                    "choose networks with more, or another method (with iakd: set iakd.unit: block)"
                )
            ends = {
                "stem": Frozen(copy.deepcopy(nn.Sequential(teacher.input, teacher.stem)), batch_statistics),
                "head": Frozen(copy.deepcopy(teacher.head), batch_statistics),
            }
        else:
            groups[0][:0] = input_conversion(student, teacher)
        self.teacher_ends = nn.ModuleDict(ends)
        branches = [
            TeacherBranch(pair, copy.deepcopy(nn.Sequential(*group)), batch_statistics)
            for pair, group in zip(self.pairs, groups, strict=True)
        ]
        generator = torch.Generator().manual_seed(derive("adapters", seed))
        for branch in branches:
            for adapter in (branch.enter, branch.leave):
                initialise(adapter, generator)
        self.branches = nn.ModuleList(branches)
        self._copied: list[nn.Module] = []  # parts of the student that the teacher's weights replace for good
        for name, source in (("stem", options.stem), ("head", options.head)):
            if source == "teacher":
                copy_weights(getattr(teacher, name), getattr(student, name), name)
                self._copied.append(getattr(student, name).requires_grad_(False))
        self._norms = _places(student, _BatchNorm)
        separate = self._norms if options.student_bn == "separate" else []
        self.hybrid_norms = nn.ModuleList(copy.deepcopy(layer) for _, _, layer in separate)
        self.to(next(student.parameters()).device)

    @property
    def only_blocks_train(self) -> bool:
        """Whether stem and head are frozen, so that a step without student blocks would train nothing."""
        return not _learns(self.student.stem, self.student.head)

    def forward(self, images: Tensor, kept: Sequence[KeepMask]) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W), with one keep mask per block slot."""
        logits = self.forward_features(images, kept, LOGITS).logits
        assert logits is not None
        return logits

    def forward_features(self, images: Tensor, kept: Sequence[KeepMask], spec: FeatureSpec) -> Features:
        """What `spec` names of the forward pass.

        Features after a student block that is not the last of its slot exist only where the student's blocks are kept.
        """
        sizes = self._sizes(tuple(images.shape[1:]))
        return forward_slots(self.student, images, self._slots(kept, sizes), spec)

    def prefixes(self, paths: Iterable[Path]) -> tuple[FeatureSpec, FeatureSpec]:
        """The features of the student's and of the teacher's own forward passes at which `paths` leave them.

        With `teacher_bn: batch`, paths need none of the teacher's own, but what `forward_teacher` returns.
        """
        student: set[int] = set()
        teacher: set[int] = set()
        for path in paths:
            pair = self.pairs[_first_change(path) - 1]
            if path[0]:
                student.add(pair.student.last)
            elif self.options.teacher_bn == "eval":
                teacher.add(pair.teacher.last)
        return FeatureSpec(blocks=frozenset(student)), FeatureSpec(blocks=frozenset(teacher))

    @torch.no_grad()
    def forward_teacher(self, images: Tensor, paths: Iterable[Path]) -> Features:
        """The teacher's forward pass with the BatchNorm that it has in paths, as far as the first of `paths` follow it.

        Returns the features after each slot, by the index of the teacher's block, and the logits if one of the paths is
        the teacher alone.
        """
        kept = Features()
        end = max((_first_change(path) for path in paths if not path[0]), default=0)
        if not end:
            return kept
        features = self.teacher_ends["stem"](images)
        for slot, pair in enumerate(self.pairs[:end]):
            features = kept.blocks[pair.teacher.last] = self._branch(slot).teacher(features)
        if end == len(self.pairs):
            kept.logits = self.teacher_ends["head"](features)
        return kept

    def forward_path(
        self,
        images: Tensor,
        path: Path,
        student: Features,
        teacher: Features,
        after: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) on a path that uses blocks of both networks.

        `student` and `teacher` have the features that `prefixes` names for it; with `teacher_bn: batch`, `teacher` is
        what `forward_teacher` returns, and the path may be the teacher alone. `after` is filled with the features after
        each slot from the first change of networks on, or after all slots of the teacher alone.
        """
        if not any(path):
            if after is not None:
                after.update({slot: teacher.blocks[pair.teacher.last] for slot, pair in enumerate(self.pairs)})
            assert teacher.logits is not None
            return teacher.logits
        sizes = self._sizes(tuple(images.shape[1:]))
        change = _first_change(path)
        before = self.pairs[change - 1]
        features = student.blocks[before.student.last] if path[0] else teacher.blocks[before.teacher.last]
        with self._hybrid_batch_norm():
            for slot in range(change, len(path)):
                if path[slot]:
                    if not path[slot - 1]:
                        features = self._branch(slot - 1).to_student(features, sizes[slot - 1])
                    for block in self.pairs[slot].student.blocks:
                        features = block(features)
                else:
                    branch = self._branch(slot)
                    if path[slot - 1]:
                        features = branch.to_teacher(features, sizes[slot])
                    features = branch.teacher(features)
                if after is not None:
                    after[slot] = features
            logits: Tensor = (self.student.head if path[-1] else self.teacher_ends["head"])(features)
        return logits

    def use_adapters(self, to_teacher: Sequence[nn.Module], to_student: Sequence[nn.Module]) -> None:
        """Let paths change networks through these modules, one for each end of a slot but the last."""
        for slot, (enter, leave) in enumerate(zip(to_teacher, to_student, strict=True)):
            device = next(self.student.parameters()).device
            self._branch(slot + 1).enter, self._branch(slot).leave = enter.to(device), leave.to(device)

    def to_teacher(self, slot: int, features: Tensor, image: Shape) -> Tensor:
        """The student's features after a slot but the last, as the teacher's next blocks take them in a path.

        `image` is the shape of an image.
        """
        return self._branch(slot + 1).to_teacher(features, self._sizes(image)[slot + 1])

    def require(self, spec: FeatureSpec) -> None:
        """Raise UnsuitableSettings where a loss reads features inside of what is swapped as one."""
        inside = (spec.blocks | spec.preactivations) - {pair.student.last for pair in self.pairs}
        if inside:
            raise UnsuitableSettings(
                f"iakd.unit: {self.options.unit}: the added loss reads the features of student block "
                f"{min(inside) + 1}, which is swapped together with the blocks after it; set iakd.unit: block, or "
                "iakd.form: two_path"
            )

    @torch.no_grad()
    def refuse_single(self, image: Shape) -> list[bool]:
        """Whether the teacher's branch of each slot refuses a single image of this shape in training.

        That is where a BatchNorm normalises by the batch and has maps of one pixel: in an adapter, or in the teacher's
        blocks with `teacher_bn: batch`. Nothing is computed.
        """
        return [
            _refuses(branch, torch.empty(1, *pair.student.before, device="meta"), sizes)
            for branch, pair, sizes in zip(self.branches, self._pair(image), self._sizes(image), strict=True)
        ]

    def make_sampler(self, timeline: Timeline, seed: int, image: Shape) -> SwapSampler:
        """Return what draws the swaps of a training on images of this shape; the options have a schedule.

        Raises UserError where a step may keep only a block that is frozen.
        """
        options, schedule = self.options, self.options.schedule
        assert isinstance(schedule, Schedule)
        widths = [channels(pair.student.after) for pair in self.pairs]
        strict = self.refuse_single(image) if options.granularity == "sample" else ()
        adapters: list[Any] = [adapter for branch in self.branches for adapter in (branch.enter, branch.leave)]
        if self.only_blocks_train and not _learns(*adapters):
            for number, pair in enumerate(self.pairs, 1):
                if not _learns(*pair.student.blocks):
                    raise UserError(
                        f"nothing is trained in the student's stem, head and block slot {number}, so a step that keeps "
                        "only that slot would train nothing: freeze less of the student"
                    )
        return make_swap_sampler(options, schedule, timeline, widths, seed, self.only_blocks_train, strict)

    def copy_norms(self) -> None:
        """Start the separate BatchNorm layers of hybrid paths from the student's, after a change of the latter."""
        for (_, _, layer), separate in zip(self._norms, self.hybrid_norms, strict=False):  # none, or one for each
            separate.load_state_dict(layer.state_dict())

    def train(self, mode: bool = True) -> "Hybrid":
        """Student and adapters as `mode` says; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._copied:
            module.eval()
        return self

    def _branch(self, slot: int) -> TeacherBranch:
        branch = self.branches[slot]
        assert isinstance(branch, TeacherBranch)
        return branch

    @contextmanager
    def _hybrid_batch_norm(self) -> Iterator[None]:
        """Let the student's BatchNorm treat the features of hybrid paths as `student_bn` says."""
        match self.options.student_bn:
            case "shared":
                yield
            case "batch":
                layers = [layer for _, _, layer in self._norms if layer.training and layer.track_running_stats]
                for layer in layers:
                    layer.track_running_stats = False
                try:
                    yield
                finally:
                    for layer in layers:
                        layer.track_running_stats = True
            case "separate":
                for (parent, name, _), layer in zip(self._norms, self.hybrid_norms, strict=True):
                    parent._modules[name] = layer
                try:
                    yield
                finally:
                    for parent, name, layer in self._norms:
                        parent._modules[name] = layer

    def _pair(self, image: Shape | None = None) -> list[BlockPair]:
        pairs = pair_blocks(self._teacher[0], self.student, image)
        return whole_stages(pairs) if self.options.unit == "stage" else pairs

    def _slots(self, kept: Sequence[KeepMask], sizes: list[Sizes]) -> Iterator[BlockSlot]:
        for pair, branch, size, keep in zip(self.pairs, self.branches, sizes, kept, strict=True):
            teacher = partial(branch, sizes=size)
            if keep is True:
                yield from enumerate(pair.student.blocks, pair.student.first)
            elif keep is False:
                yield pair.student.last, teacher
            else:
                yield pair.student.last, partial(mix_branches, pair.student.blocks, teacher, keep)

    def _sizes(self, image: Shape) -> list[Sizes]:
        """`TeacherBranch` sizes for images of this shape; None where the maps of both networks have the same size."""
        if all(pair.same_size for pair in self.pairs):
            return [None] * len(self.pairs)
        if image not in self._sizes_of:
            pairs = self._pair(image)
            self._sizes_of[image] = [
                None if pair.same_size else (pair.teacher.before[1:], pair.student.after[1:]) for pair in pairs
            ]
        return self._sizes_of[image]


def _first_change(path: Path) -> int:
    """The first slot whose blocks are of another network than those before it; the number of slots if there is none."""
    return next((slot for slot, own in enumerate(path) if own != path[0]), len(path))


def _refuses(module: nn.Module, *arguments: Any) -> bool:
    try:
        call_on_meta(module, *arguments)
    except ValueError:  # of BatchNorm
        return True
    return False


def _places(network: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Every layer of a kind, with the module that holds it and its name there."""
    return [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


def _learns(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())
