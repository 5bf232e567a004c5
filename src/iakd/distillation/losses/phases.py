"""Methods with a first phase, which their authors run before the training.

Here it is the first part of the same training, so that all methods have the same number of steps, one learning-rate
schedule and one checkpoint.
"""

from collections.abc import Hashable

from iakd.distillation.loss import DistillationLoss, LossContext


def first_steps(context: LossContext, share: float) -> int:
    """Return the number of steps of a first phase that takes `share` of the training."""
    return round(share * context.timeline.total)


class FirstPhaseLoss(DistillationLoss):
    """Base class of losses that replace the cross-entropy in a first phase and are inactive afterwards."""

    def __init__(self, context: LossContext, share: float) -> None:
        super().__init__(context)
        self.first_phase = first_steps(context, share)

    def ce_weight_at(self, step: int) -> float:
        return 0.0 if self.active(step) else self.ce_weight

    def active(self, step: int) -> bool:
        return step < self.first_phase

    def graph_key(self, step: int) -> Hashable:
        return self.active(step)
