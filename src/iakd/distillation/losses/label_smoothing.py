"""Cross-entropy with smoothed labels (Szegedy et al. 2016, section 7)."""

from iakd.distillation.loss import DistillationLoss, LossContext


class LabelSmoothingLoss(DistillationLoss):
    """The cross-entropy's target is (1 − ε)·label + ε/classes."""

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.label_smoothing = context.options.epsilon
