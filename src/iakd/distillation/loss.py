"""The loss of the labels, in float32 whatever the autocast."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.data.loader import Batch, EpochSubset, ImageLoader
from iakd.models import Network
from iakd.models.features import Features, FeatureSpec, classifier
from iakd.models.network import initialise
from iakd.models.pairing import BlockPair, levels, pair_blocks
from iakd.models.shapes import Shape, feature_shapes
from iakd.training.timeline import Timeline


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float, other: Tensor | None = None, share: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats; logits (B, classes), labels (B,).

    Of mixed images, share·CE(labels) + (1 - share)·CE(other): `other` and `share` (B,) are those of `Batch`.
    """
    logits = logits.float()
    if other is None or share is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    own, mixed_in = (
        F.cross_entropy(logits, each, label_smoothing=smoothing, reduction="none") for each in (labels, other)
    )
    return (share * own + (1 - share) * mixed_in).mean()


@dataclass(frozen=True)
class LossContext:
    """Where a part works: the two networks, its options in `method`, the training images and the time."""

    student: Network
    frozen_teacher: Network | None
    options: Any
    data: ImageLoader
    timeline: Timeline
    seed: int

    @property
    def teacher(self) -> Network:
        """The frozen teacher."""
        assert self.frozen_teacher is not None, "a part that looks at the teacher says so in config.methods"
        return self.frozen_teacher

    @property
    def image(self) -> Shape:
        """(C, H, W) of every image."""
        return self.data.image_shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return classifier(self.student).out_features

    @cached_property
    def levels(self) -> list[BlockPair]:
        """Where features are compared: at the ends of the student's stages. Raises UserError for impossible pairs."""
        return levels(pair_blocks(self.teacher, self.student, self.image))

    @cached_property
    def stem_shapes(self) -> tuple[Shape, Shape]:
        """Shapes of one image's features after the student's stem, and after the teacher's."""
        return feature_shapes(self.student, self.image)[0], feature_shapes(self.teacher, self.image)[0]

    @property
    def pooled_sizes(self) -> tuple[int, int]:
        """Lengths of the student's pooled features, and of the teacher's."""
        return classifier(self.student).in_features, classifier(self.teacher).in_features


@dataclass(frozen=True)
class ForwardOutputs:
    """What the terms of one step look at. Student and teacher have seen the same images.

    `student` is of the path that is taught: the hybrid's, or the student's alone. `student_logits` and
    `teacher_logits` (B, classes) float32 are for losses between outputs: standardised, where the method says so.
    """

    step: int  # of the step in the training, from 0
    batch: Batch
    student: Features
    teacher: Features
    student_logits: Tensor
    teacher_logits: Tensor | None
    transform_logits: Callable[[Tensor], Tensor] = (
        Tensor.float
    )  # how losses between outputs see the logits of any other network
    smoothing: float = 0.0  # of the labels
    autocast: bool = False  # whether networks are run in bfloat16
    second: "ForwardOutputs | None" = None  # the same of `batch.second`

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Of logits (B, classes) for this batch's images, smoothed and mixed as in the rest of the loss."""
        return cross_entropy(logits, self.batch.labels, self.smoothing, self.batch.other, self.batch.share)

    def logits_of(self, network: Network) -> Tensor:
        """Logits (B, classes), float32, of a network of the part's own, run like the student and the teacher."""
        images = self.batch.images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return network(images).float()


class DistillationLoss(nn.Module):
    """One part of a method expression, such as kd in `iakd+kd`.

    It weighs the cross-entropy and may add terms. What it trains along are its parameters, what it remembers its
    buffers: both are in the checkpoint and gone from the student afterwards. What is to stay, `deploy` says.
    """

    ce_weight = 1.0  # of every step, unless `ce_weight_at` says otherwise
    smoothing = 0.0  # of the labels; in a sum the largest counts
    student_features = FeatureSpec()
    teacher_features = FeatureSpec()
    uses_hidden_features = False  # whether the teacher's needs are more than outputs; known before there are networks
    cross_sample = False  # whether it looks across the images of a batch, or remembers something of each
    graph_safe = False  # whether `terms` computes the same in every step, given tensors that stay where they are

    def __init__(self, context: LossContext) -> None:
        super().__init__()

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the part's weights."""
        initialise(self, generator)

    @staticmethod
    def deploy(student: Network, teacher: Network, options: Any, image: Shape, generator: torch.Generator) -> None:
        """Make of a built student what is trained and deployed: for nearly all methods it stays as it is.

        New layers are drawn from `generator`.
        """

    @staticmethod
    def images(options: Any, n: int, epoch: int) -> int:
        """How many of `n` images an epoch shows."""
        return n

    def choose(self, epoch: int) -> EpochSubset | None:
        """Which ones, where these are not all as they are; asked when the epoch begins or is gone on with."""
        return None

    def ce_weight_at(self, step: int) -> float:
        """Weight of the cross-entropy at a step; in a sum the largest counts."""
        return self.ce_weight

    def active(self, step: int) -> bool:
        """Whether there are terms at a step; if not, nothing is looked at for them."""
        return True

    def second_view(self, augment: config.Augment) -> config.Augment | None:
        """The augmentation for a second view of each image (`ForwardOutputs.second`), given the first view's."""
        return None

    def transform_logits(self, logits: Tensor) -> Tensor:
        """How losses between outputs see logits (B, classes), the student's and the teacher's alike."""
        return logits

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        """Named scalars in float32, weighted, to be added to the loss.

        Called outside autocast. Features are as the networks gave them: make them `float()` first.
        """
        return {}

    def record(self) -> dict[str, Any]:
        """What a reader of the finished run should know, as JSON; empty for most parts."""
        return {}


def features_at_levels(context: LossContext) -> tuple[FeatureSpec, FeatureSpec]:
    """Needs of the student and of the teacher for features at `context.levels`."""
    ours = frozenset(pair.student.last for pair in context.levels)
    theirs = frozenset(pair.teacher.last for pair in context.levels)
    return FeatureSpec(blocks=ours), FeatureSpec(blocks=theirs)


def level_features(context: LossContext, outputs: ForwardOutputs) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's features at each level, float32."""
    return [
        (outputs.student.blocks[pair.student.last].float(), outputs.teacher.blocks[pair.teacher.last].float())
        for pair in context.levels
    ]
