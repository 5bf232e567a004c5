"""The base class of all distillation losses, and what a loss gets to see.

A method's loss is a subclass in `distillation/losses/`. It declares which features of student and teacher it reads;
the `Distiller` computes these in one forward pass each and hands them over as `ForwardOutputs`.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.data.loader import Batch, EpochData, ImageLoader, MixedLabels
from iakd.interactive.hybrid import Hybrid
from iakd.interactive.paths import Path
from iakd.models import Network
from iakd.models.features import Features, FeatureSpec, classifier
from iakd.models.network import initialise
from iakd.models.pairing import BlockPair, levels
from iakd.models.shapes import Shape
from iakd.training.timeline import Timeline


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float,
    mixed: MixedLabels | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy in nats, in float32 whatever the autocast; logits (B, classes), labels (B,).

    For mixed images: weight·CE(labels) + (1 - weight)·CE(mixed labels). `class_weights` float32 (classes,): the CE of
    each label is multiplied by the weight of its class, and the mean is still one over the images.
    """
    logits = logits.float()
    if mixed is None and class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def of_images(labels: Tensor) -> Tensor:
        each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return each if class_weights is None else class_weights[labels] * each

    if mixed is None:
        return of_images(labels).mean()
    first, second = of_images(labels), of_images(mixed.labels)
    return (mixed.weight * first + (1 - mixed.weight) * second).mean()


@dataclass(frozen=True)
class LossContext:
    """What a loss is built from: its options, the two networks, the training images, the timeline and the seed."""

    options: Any  # of the options class of its `MethodSpec`
    student: Network
    frozen_teacher: Network | None
    data: ImageLoader
    timeline: Timeline
    seed: int
    hybrid: Hybrid | None = None  # where a method of the sum has `hybrid_options`
    alone: bool = True  # whether the sum has no other method
    chosen_levels: Sequence[BlockPair] = ()  # by another loss of the sum

    @property
    def teacher(self) -> Network:
        """The frozen teacher."""
        assert self.frozen_teacher is not None, "a method whose loss reads the teacher has needs_teacher=True"
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
    def levels(self) -> Sequence[BlockPair]:
        """Where features are compared: usually at the ends of the stages, unless another loss has chosen.

        Raises UserError for impossible pairs.
        """
        return self.chosen_levels or levels(self.teacher, self.student, self.image)

    @property
    def pooled_sizes(self) -> tuple[int, int]:
        """Lengths of the student's and the teacher's pooled features."""
        return classifier(self.student).in_features, classifier(self.teacher).in_features


@dataclass(frozen=True)
class ForwardOutputs:
    """What the losses of one step read: the features of student and teacher on the same images.

    `student` is the taught path: the hybrid network, or the student alone.
    """

    step: int  # of the training, from 0
    batch: Batch
    student: Features
    teacher: Features
    transform_logits: Callable[[Tensor], Tensor] = Tensor.float  # what logit losses compare; float32, or standardised
    label_smoothing: float = 0.0
    autocast: bool = False  # whether networks run in bfloat16
    hybrid_logits: Mapping[Path, Tensor] = field(default_factory=dict)  # (B, classes) of the paths that losses ask for
    hybrid_features: Mapping[Path, Mapping[int, Tensor]] = field(default_factory=dict)
    """Of these paths, the features after each slot from the first change of networks on."""
    class_weights: Tensor | None = None  # of the cross-entropy, float32 (classes,)
    second_view: "ForwardOutputs | None" = None  # the same for `batch.second_view`

    @cached_property
    def student_logits(self) -> Tensor:
        """Transformed logits (B, classes), float32, of the student."""
        assert self.student.logits is not None
        return self.transform_logits(self.student.logits)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The same of the teacher; for losses whose `teacher_features` include the logits."""
        assert self.teacher.logits is not None
        return self.transform_logits(self.teacher.logits)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Cross-entropy of logits (B, classes) for this batch's labels: smoothed, mixed, weighted like the main one."""
        return cross_entropy(logits, self.batch.labels, self.label_smoothing, self.batch.mixed, self.class_weights)

    def logits_of(self, network: Network) -> Tensor:
        """Logits (B, classes), float32, of a network that the loss brings itself, run like student and teacher."""
        images = self.batch.images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return network(images).float()


class DistillationLoss(nn.Module):
    """The loss of one method, such as kd in `iakd+kd`: it weights the cross-entropy and may add terms of its own.

    What it trains besides the student are its parameters, what it remembers its buffers. Both are in the checkpoint,
    and discarded when the training ends. A method that adds layers to the student for good implements `deploy`.
    """

    ce_weight = 1.0  # weight of the cross-entropy in every step, unless `ce_weight_at` says otherwise
    label_smoothing = 0.0  # in a sum the largest counts
    student_features = FeatureSpec()  # what `forward` reads besides the student's logits
    teacher_features = FeatureSpec()
    uses_hidden_features = False  # whether teacher_features are more than outputs; known without building networks
    cross_sample = False  # whether it relates the images of a batch to each other, or remembers them
    graph_safe = False  # whether `forward` does the same in every step, so that it can be replayed as a CUDA graph
    levels: Sequence[BlockPair] = ()  # where methods that compare levels do so in a sum with it, if it chooses that

    def __init__(self, context: LossContext) -> None:
        super().__init__()

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights of its layers."""
        initialise(self, generator)

    @staticmethod
    def deploy(student: Network, teacher: Network, options: Any, image: Shape, generator: torch.Generator) -> None:
        """Turn a newly built student into the network that is trained and deployed; most methods leave it as it is.

        New layers are drawn from `generator`.
        """

    @staticmethod
    def images_per_epoch(options: Any, n: int, epoch: int) -> int:
        """How many of `n` images an epoch shows."""
        return n

    def epoch_data(self, epoch: int, augment: config.Augment) -> EpochData:
        """What it asks of an epoch's images, whose first view has the augmentation `augment`.

        Called when the epoch starts or resumes. In a sum, one method at most asks for a subset or for a second view.
        """
        return EpochData()

    @staticmethod
    def hybrid_options(options: Any) -> config.IakdOptions | None:
        """Return how student and teacher are joined to a hybrid network; None if the method has none."""
        return None

    def paths(self, step: int) -> Iterable[Path]:
        """The hybrid paths whose logits it reads at a step. In a sum, one method at most has a hybrid network."""
        return ()

    def graph_key(self, step: int) -> Hashable | None:
        """Equal for two steps in which `forward` does the same; None for a step that is like no other."""
        return () if self.graph_safe else None

    def begin_step(self, step: int) -> None:
        """What it does before the forward passes of a step, and outside a recorded one.

        Here numbers that differ from step to step are brought to the device, into memory that stays the same.
        """

    def finish(self) -> None:
        """What it does to the student after the last step."""

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """Further columns for an epoch's row in the history."""
        return {}

    def lr_factors(self) -> dict[nn.Parameter, float]:
        """The learning rate of parameters that have another one than the recipe's, as a multiple of it."""
        return {}

    def peer_network(self) -> Network | None:
        """A second network that it trains for its own sake: validated with the student and saved beside it."""
        return None

    def alone_at(self, step: int) -> bool:
        """Whether a step is its alone: neither terms nor weights of the cross-entropy of other losses count."""
        return False

    def ce_weight_at(self, step: int) -> float:
        """Weight of the cross-entropy at a step; in a sum the largest counts."""
        return self.ce_weight

    def active(self, step: int) -> bool:
        """Whether it adds terms at a step; if not, no features are computed for it."""
        return True

    def transform_logits(self, logits: Tensor) -> Tensor:
        """What all logit losses of the sum compare instead of logits (B, classes), student's and teacher's alike."""
        return logits

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        """Named terms of the loss: weighted scalars in float32.

        Called outside autocast. Features have the dtype that the networks gave them: call `float()` first.
        """
        return {}

    def record(self) -> dict[str, Any]:
        """What a reader of the finished run should know, as JSON."""
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
