"""Mutual learning (Zhang et al., Deep Mutual Learning, CVPR 2018) with a copy of the teacher as the student's peer."""

import copy

import torch
from torch import Tensor

from iakd.methods.logits.kd import kd_divergence
from iakd.methods.part import Part, Setting, Step


class Mutual(Part):
    """Student and peer each learn the labels and, by T²·KL(other_T ‖ own_T), each other's outputs, in the same step.

    The teacher itself stays as it is.
    """

    replays = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.options = setting.method.mutual
        self.ce_weight = self.options.ce_weight
        self.peer = copy.deepcopy(setting.teacher).requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """The peer begins as the teacher is."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        o = self.options
        logits = step.logits_of(self.peer)
        ours, theirs = step.student_logits, step.seen(logits)
        return {
            "mutual_kd": o.kd_weight * kd_divergence(ours, theirs.detach(), o.temperature),
            "mutual_peer_ce": o.ce_weight * step.cross_entropy(logits),
            "mutual_peer_kd": o.kd_weight * kd_divergence(theirs, ours.detach(), o.temperature),
        }
