"""Relations between outputs (Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022)."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import LOGITS

EPSILON = 1e-8


class DISTLoss(DistillationLoss):
    """T²·(inter·(1 − ρ over classes) + intra·(1 − ρ over the batch)) beside ce_weight·CE."""

    teacher_features = LOGITS
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        inter, intra = relations(outputs.student_logits, outputs.teacher_logits, self.options.temperature)
        return {"dist_inter": self.options.inter * inter, "dist_intra": self.options.intra * intra}


def relations(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T²·(1 − ρ), ρ Pearson's correlation of softened outputs.

    First over the classes, mean over the images; then over the images of the batch, mean over the classes. What does
    not vary correlates with nothing: in a batch of one image the second is T². Logits (B, classes).
    """
    ours, theirs = ((logits.float() / temperature).softmax(dim=1) for logits in (student, teacher))
    return (
        temperature**2 * (1 - _correlation(ours, theirs).mean()),
        temperature**2 * (1 - _correlation(ours.T, theirs.T).mean()),
    )


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's ρ of each two rows, (rows,)."""
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    return (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1) + EPSILON)
