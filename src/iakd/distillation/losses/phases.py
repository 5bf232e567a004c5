"""Methods whose authors train something before the training proper: here it is the first share of the same training.

So all methods have equally many steps, one learning-rate schedule and one checkpoint.
"""

from iakd.distillation.loss import DistillationLoss, LossContext


def first_steps(context: LossContext, share: float) -> int:
    """How many steps the first phase has."""
    return round(share * context.timeline.total)


class FirstPhaseLoss(DistillationLoss):
    """A part that looks at the teacher in the first share of the steps, without labels, and leaves the rest to them."""

    def __init__(self, context: LossContext, share: float) -> None:
        super().__init__(context)
        self.first = first_steps(context, share)

    def ce_weight_at(self, step: int) -> float:
        return 0.0 if self.active(step) else self.ce_weight

    def active(self, step: int) -> bool:
        return step < self.first
