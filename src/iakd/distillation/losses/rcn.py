"""RCN: the student's convolutions have a second branch, the teacher's where it fits, which is merged in the end."""

import copy
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import nn

from iakd.config.method_options import RcnOptions
from iakd.devices import to_device
from iakd.distillation.loss import DistillationLoss, LossContext
from iakd.errors import UnsuitableSettings
from iakd.models import Network
from iakd.models.branches import BranchedBatchNorm2d, Layers, add_branch, merge_branches, normalised_convolutions
from iakd.models.network import initialise
from iakd.models.pairing import pair_blocks
from iakd.models.shapes import Shape
from iakd.seeding import derive

CONVOLUTION = ("stride", "padding", "dilation", "groups", "padding_mode")  # what must be equal, besides the shapes
SHARES = torch.tensor([1.0, 0.0, 0.5])  # of the first branch in a channel, equally likely


class RCNLoss(DistillationLoss):
    """Every convolution with a BatchNorm gets a second branch: y = η·BN(conv(x)) + (1 − η)·BN′(conv′(x)).

    In each step and channel, η is 1, 0 or ½, with equal chances; in evaluation mode, and in the last `mean_only` of the
    steps, it is ½. In the end both branches are merged into the student's own layers, which then compute the same. The
    second branch is the teacher's convolution where the first block of the paired group has one of equal shape, frozen
    with its running statistics unless `freeze` is false, and otherwise one with random weights, which is trained.

    Zhang et al., Representation Compensation Networks for Continual Semantic Segmentation, CVPR 2022, whose frozen
    branch is the network of earlier classes. That the teacher takes its place, the pairing, branches for all
    convolutions (there: one in each block) and the last steps are ours. It adds no term to the loss.
    """

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: RcnOptions = context.options
        self.seed = context.seed
        self.swapped_steps = round((1 - self.options.mean_only) * context.timeline.total)
        if context.hybrid is not None:
            raise UnsuitableSettings(
                "rcn swaps channels within the student's blocks, which another method of this sum swaps whole"
            )
        self._layers = normalised_convolutions(context.student, context.image)
        counterparts = _counterparts(context.student, context.teacher, context.image)
        copies = [_teachers_copy(each, counterparts) for each in self._layers]
        if not any(copies):
            raise UnsuitableSettings(
                "rcn needs a teacher with convolutions of the student's shapes, and this one has none where the "
                "student has them; choose networks of the same kind and width"
            )
        self._drawn: list[Layers] = []  # second branches that are not the teacher's
        for (conv, norm), teachers in zip(self._layers, copies, strict=True):
            if teachers is None:
                self._drawn.append((copy.deepcopy(conv), copy.deepcopy(norm)))
            for layer in teachers or ():
                layer.requires_grad_(not self.options.freeze)
            add_branch((conv, norm), teachers or self._drawn[-1])
        self._record = {"branches": len(copies), "from_teacher": len(copies) - len(self._drawn)}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the second branches that are not the teacher's."""
        for conv, norm in self._drawn:
            initialise(conv, generator)
            initialise(norm, generator)

    def begin_step(self, step: int) -> None:
        """Draw η for each channel, as a function of seed and step, so that a resumed training needs no state."""
        rng = np.random.Generator(np.random.PCG64(derive("rcn", self.seed, step)))
        for _, norm in self._layers:
            assert isinstance(norm, BranchedBatchNorm2d)
            if step >= self.swapped_steps:
                norm.share = None
                continue
            drawn = torch.from_numpy(rng.integers(0, len(SHARES), norm.num_features))
            share = to_device(SHARES[drawn], norm.weight.device)
            if norm.share is None:
                norm.share = share
            else:
                norm.share.copy_(share)  # in place: recorded steps read this memory

    def graph_key(self, step: int) -> Hashable:
        return step < self.swapped_steps

    def finish(self) -> None:
        """Merge the branches."""
        while self._layers:
            merge_branches(self._layers.pop())

    def record(self) -> dict[str, Any]:
        """Return how many convolutions have or had a second branch, and in how many it was the teacher's."""
        return self._record


def _counterparts(student: Network, teacher: Network, image: Shape) -> dict[nn.Module, nn.Module]:
    """Return the teacher's layer in the place of each of the student's, where stem, block or head are of one kind.

    As with `init: teacher`, a student block corresponds to the first block of its group. The layer that reads the
    images has no counterpart where the networks expect them normalised in different ways.
    """
    parts: list[tuple[nn.Module, nn.Module]] = [(student.stem, teacher.stem), (student.head, teacher.head)]
    for pair in pair_blocks(teacher, student, image):
        parts += zip(pair.student.blocks, pair.teacher.blocks, strict=False)
    found = {
        layer: teacher_layers[name]
        for part, teacher_part in parts
        if type(part) is type(teacher_part)
        for teacher_layers in [dict(teacher_part.named_modules())]
        for name, layer in part.named_modules()
        if name in teacher_layers
    }
    if student.normalisation != teacher.normalisation:
        found.pop(next(layer for layer in student.modules() if isinstance(layer, nn.Conv2d)), None)
    return found


def _teachers_copy(layers: Layers, counterparts: dict[nn.Module, nn.Module]) -> Layers | None:
    """Return copies of the teacher's layers in the place of `layers`, if they have the same shapes."""
    conv, norm = (counterparts.get(layer) for layer in layers)
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return None
    own, own_norm = layers
    same = all(getattr(conv, name) == getattr(own, name) for name in CONVOLUTION)
    if not same or conv.weight.shape != own.weight.shape or norm.num_features != own_norm.num_features:
        return None
    return copy.deepcopy(conv), copy.deepcopy(norm)
