"""Mutual learning (Zhang et al., Deep Mutual Learning, CVPR 2018) with a copy of the teacher as the student's peer."""

import copy

import torch
from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence


class MutualLoss(DistillationLoss):
    """Student and peer each learn the labels and, by T²·KL(other_T ‖ own_T), each other's outputs, in the same step.

    The teacher itself stays as it is.
    """

    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight
        self.peer = copy.deepcopy(context.teacher).requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """The peer begins as the teacher is."""

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        logits = outputs.logits_of(self.peer)
        ours, theirs = outputs.student_logits, outputs.transform_logits(logits)
        return {
            "mutual_kd": o.kd_weight * kd_divergence(ours, theirs.detach(), o.temperature),
            "mutual_peer_ce": o.ce_weight * outputs.cross_entropy(logits),
            "mutual_peer_kd": o.kd_weight * kd_divergence(theirs, ours.detach(), o.temperature),
        }
