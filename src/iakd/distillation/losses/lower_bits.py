"""What the lower bit-widths of a student learn: the outputs of the next higher one."""

from collections.abc import Iterable

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.models.quantisation import at_bits, bit_widths


class LowerBitsLoss(DistillationLoss):
    """Σ over the bit-widths b below the highest of KL(softmax(z_b+) ‖ softmax(z_b)), without temperature or labels.

    z_b are the student's logits with b bits, and z_b+ those with the next higher bit-width, as constants. Those of the
    highest are the logits that the method itself trains. All bit-widths are trained in every step. It is part of every
    method that trains such a student. Yu et al., Any-Precision Deep Neural Networks, AAAI 2021: recursive supervision,
    as in the authors' code, where a soft cross-entropy stands for the divergence: the same gradient.
    """

    ce_weight = 0.0  # the method's own counts
    graph_safe = True

    def __init__(self, context: LossContext, others: Iterable[DistillationLoss]) -> None:
        super().__init__(context)
        self._student = (context.student,)  # not a submodule: the distiller has it already
        self._first_phases = tuple(loss for loss in others if isinstance(loss, FirstPhaseLoss))

    def active(self, step: int) -> bool:
        """Whether the step is after a first phase, which does not train the outputs."""
        return not any(loss.active(step) for loss in self._first_phases)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        (student,) = self._student
        assert outputs.student.logits is not None
        higher, terms = outputs.student.logits.float(), {}
        for bits in bit_widths(student)[1:]:
            with at_bits(student, bits):
                logits = outputs.logits_of(student)
            terms[f"bits_{bits}"] = kd_divergence(logits, higher.detach(), 1.0)
            higher = logits
        return terms
