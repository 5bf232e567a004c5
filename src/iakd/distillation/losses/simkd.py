"""The teacher's classifier reused (SimKD, Chen et al. 2022), weight and projector as in the authors' code.

It is the one method whose student does not stay a plain one: projector and classifier become its head.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import SimkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import of_one_size, pooled
from iakd.errors import UserError
from iakd.models import Network
from iakd.models.features import FeatureSpec
from iakd.models.network import initialise
from iakd.models.shapes import Shape, feature_shapes, unpooled_shape

UNPOOLED = FeatureSpec(unpooled=True)


class SimKDLoss(DistillationLoss):
    """weight·MSE between what the two networks' heads pool: the student's projected maps and the teacher's. No CE."""

    ce_weight = 0.0
    student_features = UNPOOLED
    teacher_features = UNPOOLED
    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.weight = context.options.weight

    @staticmethod
    def deploy(
        student: Network, teacher: Network, options: SimkdOptions, image: Shape, generator: torch.Generator
    ) -> None:
        ours = feature_shapes(student, image)[-1]
        if len(ours) != 3:
            raise UserError(
                "simkd projects maps, but the student's blocks give tokens; choose a convolutional student, "
                "or a method that does without, such as kd or rkd"
            )
        classifier = classifier_of(teacher)
        head = ReusedHead(ours, unpooled_shape(teacher, image), classifier, options.factor)
        initialise(head.projector, generator)
        student.head = head.to(next(student.parameters()).device)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.unpooled is not None and outputs.teacher.unpooled is not None
        maps = of_one_size(outputs.student.unpooled.float(), outputs.teacher.unpooled.float())
        return {"simkd": self.weight * F.mse_loss(*maps)}


class ReusedHead(nn.Module):
    """Maps of shape `ours` → logits: pooled to the teacher's size if larger, projected, and classified as it does.

    The classifier is a frozen copy. The projector narrows to a `factor`-th of the teacher's channels in between.
    """

    def __init__(self, ours: Shape, theirs: Shape, classifier: nn.Sequential, factor: int) -> None:
        super().__init__()
        narrow = max(1, theirs[0] // factor)
        self.size = min(ours[1], theirs[1]), min(ours[2], theirs[2])
        self.projector = nn.Sequential(
            *_layer(ours[0], narrow, 1),
            *_layer(narrow, narrow, 3),
            *_layer(narrow, theirs[0], 1),
        )
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)

    def train(self, mode: bool = True) -> "ReusedHead":
        """The classifier stays in evaluation mode, as in the teacher."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.projector(pooled(maps, self.size)))


def classifier_of(network: Network) -> nn.Sequential:
    """The end of a network's head, from its global pooling on. Raises UserError where it cannot be told apart."""
    layers = list(network.head.children()) if isinstance(network.head, nn.Sequential) else []
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            return nn.Sequential(*layers[position:])
    raise UserError(
        "simkd reuses what stands behind the teacher's global pooling, and this teacher's head is built otherwise; "
        "choose a teacher of the zoo or of torchvision, or another method"
    )


def _layer(before: int, after: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, padding=size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
