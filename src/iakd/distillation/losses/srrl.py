"""SRRL: the student's last features should mean the same to the teacher's classifier as the teacher's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import SrrlOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.errors import UnsuitableSettings
from iakd.models.features import LOGITS, POOLED, FeatureSpec, classifier
from iakd.models.network import Frozen, initialise
from iakd.models.shapes import feature_shapes, unpooled_shape


class SRRLLoss(DistillationLoss):
    """CE + feature_weight·MSE(f, f_t) + regression_weight·MSE(h_t(f), h_t(f_t)), h_t the teacher's classifier.

    f are the student's last maps, connected to the teacher's number of channels and pooled; f_t are the teacher's
    pooled features. The connector (1×1 convolution, batch normalisation, ReLU) is trained with the student.
    Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021; formula, connector
    and weights as in the authors' code.
    """

    student_features = FeatureSpec(unpooled=True)
    teacher_features = POOLED | LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: SrrlOptions = context.options
        if len(feature_shapes(context.student, context.image)[-1]) != 3:
            raise UnsuitableSettings(
                "srrl connects feature maps, but the student's blocks return tokens; choose a convolutional student, "
                "or another method, such as kd or rkd"
            )
        channels, size = unpooled_shape(context.student, context.image)[0], context.pooled_sizes[1]
        self.connector = nn.Sequential(nn.Conv2d(channels, size, 1, bias=False), nn.BatchNorm2d(size), nn.ReLU())
        self.classifier = Frozen(classifier(context.teacher))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the connector's weights; the classifier is the teacher's."""
        initialise(self.connector, generator)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.unpooled is not None and outputs.teacher.pooled is not None
        connected = self.connector(outputs.student.unpooled.float()).mean((2, 3))
        regressed = outputs.transform_logits(self.classifier(connected))
        return {
            "srrl_features": self.options.feature_weight * F.mse_loss(connected, outputs.teacher.pooled.float()),
            "srrl_regression": self.options.regression_weight * F.mse_loss(regressed, outputs.teacher_logits),
        }
