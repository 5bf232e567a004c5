"""DIST: the student's outputs should correlate with the teacher's, over the classes and over the batch."""

from torch import Tensor

from iakd.config.method_options import DistOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import LOGITS

EPSILON = 1e-8  # added to the denominator of a correlation


class DISTLoss(DistillationLoss):
    """ce_weight·CE + inter·T²·(1 − mean ρ over classes) + intra·T²·(1 − mean ρ over the batch), ρ Pearson's.

    Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022; weights as in the authors' code.
    """

    teacher_features = LOGITS
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: DistOptions = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        inter, intra = relations(outputs.student_logits, outputs.teacher_logits, self.options.temperature)
        return {"dist_inter": self.options.inter * inter, "dist_intra": self.options.intra * intra}


def relations(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return T²·(1 − ρ) between softened outputs of logits (B, classes): inter-class and intra-class relations.

    Inter: ρ over the classes, mean over the images. Intra: ρ over the images, mean over the classes. The correlation
    of a constant is 0, so in a batch of one image the intra-class relation is T².
    """
    student, teacher = ((logits.float() / temperature).softmax(dim=1) for logits in (student, teacher))
    return (
        temperature**2 * (1 - _correlation(student, teacher).mean()),
        temperature**2 * (1 - _correlation(student.T, teacher.T).mean()),
    )


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's ρ between the corresponding rows of x and y, (rows,)."""
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    return (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1) + EPSILON)
