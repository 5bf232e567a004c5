"""SimKD: the student reuses the teacher's classifier.

It is the only method that changes the student it deploys: a projector and the teacher's classifier become its head.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import SimkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import match_sizes, pool_to
from iakd.errors import UnsuitableSettings
from iakd.models import Network
from iakd.models.features import FeatureSpec
from iakd.models.network import initialise
from iakd.models.shapes import Shape, feature_shapes, unpooled_shape

UNPOOLED = FeatureSpec(unpooled=True)


class SimKDLoss(DistillationLoss):
    """weight·MSE(projector(student's last maps), teacher's last maps), without cross-entropy.

    Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022; weight and projector as in the
    authors' code.
    """

    ce_weight = 0.0
    student_features = UNPOOLED
    teacher_features = UNPOOLED
    uses_hidden_features = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: SimkdOptions = context.options

    @staticmethod
    def deploy(
        student: Network, teacher: Network, options: SimkdOptions, image: Shape, generator: torch.Generator
    ) -> None:
        shape = feature_shapes(student, image)[-1]
        if len(shape) != 3:
            raise UnsuitableSettings(
                "simkd projects feature maps, but the student's blocks return tokens; choose a convolutional student, "
                "or another method, such as kd or rkd"
            )
        classifier = classifier_of(teacher)
        head = ReusedHead(shape, unpooled_shape(teacher, image), classifier, options.factor)
        initialise(head.projector, generator)
        student.head = head.to(next(student.parameters()).device)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.unpooled is not None and outputs.teacher.unpooled is not None
        maps = match_sizes(outputs.student.unpooled.float(), outputs.teacher.unpooled.float())
        return {"simkd": self.options.weight * F.mse_loss(*maps)}


class ReusedHead(nn.Module):
    """A student's head: projects its last maps (B, C, H, W) to the teacher's and classifies them as the teacher does.

        maps ── pooled to the teacher's size, if larger ── projector ── classifier (frozen copy) ── logits

    `student` and `teacher` are the shapes (C, H, W) of the last maps. The projector's hidden layers have the teacher's
    channels divided by `factor`.
    """

    def __init__(self, student: Shape, teacher: Shape, classifier: nn.Sequential, factor: int) -> None:
        super().__init__()
        hidden = max(1, teacher[0] // factor)
        self.size = min(student[1], teacher[1]), min(student[2], teacher[2])
        self.projector = nn.Sequential(
            *_layer(student[0], hidden, 1),
            *_layer(hidden, hidden, 3),
            *_layer(hidden, teacher[0], 1),
        )
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)

    def train(self, mode: bool = True) -> "ReusedHead":
        """Set the mode of the projector; the classifier stays in evaluation mode, as in the teacher."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.projector(pool_to(maps, self.size)))


def classifier_of(network: Network) -> nn.Sequential:
    """Return the layers of a network's head from its global pooling on. Raises UnsuitableSettings if it has none."""
    layers = list(network.head.children()) if isinstance(network.head, nn.Sequential) else []
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            return nn.Sequential(*layers[position:])
    raise UnsuitableSettings(
        "simkd reuses the layers after the teacher's global pooling, but this teacher's head is built differently; "
        "choose a teacher of the zoo or of torchvision, or another method"
    )


def _layer(before: int, after: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, padding=size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
