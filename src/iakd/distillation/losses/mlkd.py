"""Multi-level logit distillation (Jin, Wang and Lin, CVPR 2023), weighed as its published code does in effect."""

import torch
from torch import Tensor

from iakd.config import Augment
from iakd.data.loader import EpochData
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class MLKDLoss(DistillationLoss):
    """Divergences at several temperatures and Gram matrices of the outputs, on two views of each image.

    The first view is the recipe's, the weak one; the second is a strong one. docs/methods/mlkd.md has the formula.
    """

    teacher_features = LOGITS
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight

    def epoch_data(self, epoch: int, augment: Augment) -> EpochData:
        o = self.options
        stronger = {"operations": o.operations, "magnitude": o.magnitude, "erase": o.erase}
        strong = augment.model_copy(update={"policy": "randaugment", **stronger, "mixup": None, "cutmix": None})
        return EpochData(second_view=strong)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        strong, o = outputs.second_view, self.options
        assert strong is not None and strong.student.logits is not None
        weak_pair = outputs.student_logits, outputs.teacher_logits
        strong_pair = strong.student_logits, strong.teacher_logits
        weak = {t: kd_divergence(*weak_pair, t) for t in o.temperatures}
        second = [kd_divergence(*strong_pair, t) if t in o.strong_temperatures else weak[t] for t in o.temperatures]
        grams = [gram_distances(*weak_pair, t) for t in o.temperatures]
        relations = o.kd_weight * o.weak_weight
        return {
            "mlkd_ce": o.ce_weight * strong.cross_entropy(strong.student.logits),
            "mlkd_kd": o.kd_weight * (o.weak_weight * _sum(list(weak.values())) + _sum(second)),
            "mlkd_images": relations * _sum([images for images, _ in grams]),
            "mlkd_classes": relations * _sum([classes for _, classes in grams]),
        }


def gram_distances(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """‖P·Pᵀ − Q·Qᵀ‖²/B and ‖Pᵀ·P − Qᵀ·Q‖²/classes, P and Q (B, classes) softened outputs."""
    ours, theirs = ((logits.float() / temperature).softmax(dim=1) for logits in (student, teacher))
    batch, classes = ours.shape
    return (
        (ours @ ours.T - theirs @ theirs.T).square().sum() / batch,
        (ours.T @ ours - theirs.T @ theirs).square().sum() / classes,
    )


def _sum(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).sum()
