"""Deep mutual learning: the student and a copy of the teacher, its peer, teach each other."""

import copy

import torch
from torch import Tensor

from iakd.config.method_options import MutualOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence


class MutualLoss(DistillationLoss):
    """For each network, ce_weight·CE + kd_weight·T²·KL(softmax(other/T) ‖ softmax(network/T)).

    The peer starts as a copy of the teacher, which itself stays frozen; both networks are updated in the same step.
    Zhang et al., Deep Mutual Learning, CVPR 2018.
    """

    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: MutualOptions = context.options
        self.ce_weight = self.options.ce_weight
        self.peer = copy.deepcopy(context.teacher).requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """Keep the peer's weights, which are the teacher's."""

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        peer_logits = outputs.logits_of(self.peer)
        student, peer = outputs.student_logits, outputs.transform_logits(peer_logits)
        return {
            "mutual_kd": o.kd_weight * kd_divergence(student, peer.detach(), o.temperature),
            "mutual_peer_ce": o.ce_weight * outputs.cross_entropy(peer_logits),
            "mutual_peer_kd": o.kd_weight * kd_divergence(peer, student.detach(), o.temperature),
        }
