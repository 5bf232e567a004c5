"""Multi-level logit distillation: several temperatures and relations, on a weak and a strong view of each image."""

import torch
from torch import Tensor

from iakd.config import Augment
from iakd.config.method_options import MlkdOptions
from iakd.data.loader import EpochData
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class MLKDLoss(DistillationLoss):
    """ce_weight·(CE + CE of the strong view) + kd_weight·(weak_weight·Σ KL_w + Σ KL) + relations.

    The sums are over the temperatures: KL_w on the weak view, KL on the strong view at `strong_temperatures` and on the
    weak view at the others. Relations are kd_weight·weak_weight·Σ of the `gram_distances` of the weak view. The weak
    view is the recipe's, the strong one adds RandAugment. docs/methods/mlkd.md has the full formula.
    Jin, Wang and Lin, Multi-Level Logit Distillation, CVPR 2023; weights as the authors' code effectively has them.
    """

    teacher_features = LOGITS
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: MlkdOptions = context.options
        self.ce_weight = self.options.ce_weight

    def epoch_data(self, epoch: int, augment: Augment) -> EpochData:
        o = self.options
        stronger = {"operations": o.operations, "magnitude": o.magnitude, "erase": o.erase}
        strong = augment.model_copy(update={"policy": "randaugment", **stronger, "mixup": None, "cutmix": None})
        return EpochData(second_view=strong)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        strong, o = outputs.second_view, self.options
        assert strong is not None and strong.student.logits is not None
        weak_logits = outputs.student_logits, outputs.teacher_logits
        strong_logits = strong.student_logits, strong.teacher_logits
        weak = {t: kd_divergence(*weak_logits, t) for t in o.temperatures}
        second = [kd_divergence(*strong_logits, t) if t in o.strong_temperatures else weak[t] for t in o.temperatures]
        relations = [gram_distances(*weak_logits, t) for t in o.temperatures]
        relations_weight = o.kd_weight * o.weak_weight
        return {
            "mlkd_ce": o.ce_weight * strong.cross_entropy(strong.student.logits),
            "mlkd_kd": o.kd_weight * (o.weak_weight * _sum(list(weak.values())) + _sum(second)),
            "mlkd_images": relations_weight * _sum([images for images, _ in relations]),
            "mlkd_classes": relations_weight * _sum([classes for _, classes in relations]),
        }


def gram_distances(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ‖P·Pᵀ − Q·Qᵀ‖²/B and ‖Pᵀ·P − Qᵀ·Q‖²/classes of softened outputs P and Q, from logits (B, classes)."""
    p, q = ((logits.float() / temperature).softmax(dim=1) for logits in (student, teacher))
    batch, classes = p.shape
    return (
        (p @ p.T - q @ q.T).square().sum() / batch,
        (p.T @ p - q.T @ q).square().sum() / classes,
    )


def _sum(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).sum()
