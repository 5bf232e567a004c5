"""Label smoothing: cross-entropy with smoothed labels."""

from iakd.config.method_options import LabelSmoothingOptions
from iakd.distillation.loss import DistillationLoss, LossContext


class LabelSmoothingLoss(DistillationLoss):
    """CE with the target (1 − ε)·label + ε/classes.

    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7.
    """

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        options: LabelSmoothingOptions = context.options
        self.label_smoothing = options.epsilon
