"""Mutual learning: the student and a copy of the teacher, its peer, teach each other, together or in turns."""

import copy
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from iakd.config.method_options import MutualOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models import Network

BOTH = frozenset({"student", "peer"})


class MutualLoss(DistillationLoss):
    """For each network, ce_weight·CE + kd_weight·T²·KL(softmax(other/T) ‖ softmax(network/T)).

    The peer starts as a copy of the teacher, which itself stays frozen. Both networks are updated in the same step, or
    in turns: then the terms of one of them are the whole loss of a step, and the other's weights rest.
    Zhang et al., Deep Mutual Learning, CVPR 2018. Turns: bilateral distillation, of which we know only the abstract.
    """

    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: MutualOptions = context.options
        self.timeline = context.timeline
        self.peer = copy.deepcopy(context.teacher).requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """Keep the peer's weights, which are the teacher's."""

    def learners(self, step: int) -> frozenset[str]:
        """Return who learns at a step: `student`, `peer` or both. In turns, the student begins."""
        if self.options.turns == "together":
            return BOTH
        number = step if self.options.turns == "steps" else self.timeline.locate(step)[0]
        return frozenset({"peer" if number % 2 else "student"})

    def alone_at(self, step: int) -> bool:
        return self.learners(step) == {"peer"}

    def ce_weight_at(self, step: int) -> float:
        return self.options.ce_weight if "student" in self.learners(step) else 0.0

    def graph_key(self, step: int) -> Hashable | None:
        return self.learners(step)

    def lr_factors(self) -> dict[nn.Parameter, float]:
        if self.options.peer_lr is None:
            return {}
        return dict.fromkeys(self.peer.parameters(), self.options.peer_lr / self.timeline.peak)

    def peer_network(self) -> Network:
        return self.peer

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o, learners = self.options, self.learners(outputs.step)
        with torch.set_grad_enabled("peer" in learners):
            peer_logits = outputs.logits_of(self.peer)
        student, peer = outputs.student_logits, outputs.transform_logits(peer_logits)
        terms: dict[str, Tensor] = {}
        if "student" in learners:
            terms["mutual_kd"] = o.kd_weight * kd_divergence(student, peer.detach(), o.temperature)
        if "peer" in learners:
            terms["mutual_peer_ce"] = o.ce_weight * outputs.cross_entropy(peer_logits)
            terms["mutual_peer_kd"] = o.kd_weight * kd_divergence(peer, student.detach(), o.temperature)
        return terms
