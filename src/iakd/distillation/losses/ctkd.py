"""Curriculum temperature: distillation with a temperature that is learned against the student."""

import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from iakd.config.method_options import CtkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class CTKDLoss(DistillationLoss):
    """ce_weight·CE + kd_weight·T²·KL(softmax(teacher/T) ‖ softmax(student/T)), T = start + span·sigmoid(θ).

    θ is one parameter for all images ("global" in the paper). It ascends the loss that the student descends: its
    gradient is reversed, by a factor that grows over the first epochs, so the task gets harder as the student improves.
    Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023; values as in the authors' code.
    """

    teacher_features = LOGITS

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: CtkdOptions = context.options
        self.ce_weight = self.options.ce_weight
        self.timeline = context.timeline
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """T, a scalar."""
        return self.options.start + self.options.span * self.theta.sigmoid()

    def factor(self, epoch: int) -> float:
        """Return the factor of θ's gradient in an epoch (from 0): half a cosine from 0 to −strength."""
        progress = min((epoch + 1) / self.options.epochs, 1.0)  # the authors count epochs from 1
        return self.options.strength * (math.cos(math.pi * progress) - 1) / 2

    def graph_key(self, step: int) -> Hashable:
        return self.factor(self.timeline.locate(step)[0])

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        factor = self.factor(self.timeline.locate(outputs.step)[0])
        temperature = scale_gradient(self.temperature, factor)
        divergence = kd_divergence(outputs.student_logits, outputs.teacher_logits, temperature)
        return {"ctkd": self.options.kd_weight * divergence}


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """Return `value` and multiply its gradient by `factor` (gradient reversal, Ganin and Lempitsky 2015)."""
    return value.detach() + factor * (value - value.detach())
