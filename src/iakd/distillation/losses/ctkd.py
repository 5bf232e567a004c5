"""A temperature that learns (Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023)."""

import math

import torch
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class CTKDLoss(DistillationLoss):
    """kd_weight·T²·KL(teacher_T ‖ student_T) beside ce_weight·CE, T = start + span·sigmoid(θ).

    One θ for all images ("global" in the paper). It climbs the loss that the student descends: its gradient is
    reversed, and grows over the first epochs, so that the task becomes harder as the student becomes better.
    """

    teacher_features = LOGITS

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight
        self.timeline = context.timeline
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """T, a scalar."""
        return self.options.start + self.options.span * self.theta.sigmoid()

    def factor(self, epoch: int) -> float:
        """What θ's gradient is multiplied by in an epoch (from 0): from 0 down to −strength."""
        progress = min((epoch + 1) / self.options.epochs, 1.0)  # its authors count epochs from 1
        return self.options.strength * (math.cos(math.pi * progress) - 1) / 2

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        factor = self.factor(self.timeline.place(outputs.step)[0])
        temperature = with_gradient_times(factor, self.temperature)
        divergence = kd_divergence(outputs.student_logits, outputs.teacher_logits, temperature)
        return {"ctkd": self.options.kd_weight * divergence}


def with_gradient_times(factor: float, value: Tensor) -> Tensor:
    """`value`, whose gradient is multiplied by `factor` on the way back (gradient reversal, Ganin & Lempitsky 2015)."""
    return value.detach() + factor * (value - value.detach())
