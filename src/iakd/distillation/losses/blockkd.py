"""Block-wise logit distillation: the teacher's last blocks judge what the student's first blocks return."""

import torch
from torch import Tensor

from iakd.config import IakdOptions
from iakd.config.method_options import BlockkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.interactive.hybrid import make_adapter, resized
from iakd.interactive.paths import Path
from iakd.models.features import LOGITS, FeatureSpec
from iakd.models.shapes import channels


class BlockKDLoss(DistillationLoss):
    """CE + kd_weight·KL(S) + Σ_i 2^−(n − i)·[label_weight·CE(N_i) + stone_weight·KL(N_i)], KL = T²·KL(teacher_T ‖ ·_T).

    The stepping stone N_i has the student's first i stages and the teacher's other n − i and its head; i = 1 … n, so
    the last one is the student with the teacher's head. Connectors (1×1 convolution and BatchNorm) stand where the
    shapes differ, and are discarded. Yu et al., Decoupling Dark Knowledge via Block-wise Logit Distillation for
    Feature-level Alignment, arXiv 2411.01547. The stones are the paper's; neither its text nor code could be had, so
    the weights are ours.
    """

    teacher_features = LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: BlockkdOptions = context.options
        self.ce_weight = self.options.ce_weight
        assert context.hybrid is not None
        self.pairs = context.hybrid.pairs
        self.stones: list[Path] = [
            tuple(slot < count for slot in range(len(self.pairs))) for count in range(1, len(self.pairs))
        ]
        last = self.pairs[-1]
        self.student_features = FeatureSpec(blocks=frozenset({last.student.last}))
        self.connector = make_adapter(last, channels(last.student.after), channels(last.teacher.after))
        self._head = (context.hybrid.teacher_ends["head"],)  # the distiller's

    @staticmethod
    def hybrid_options(options: BlockkdOptions) -> IakdOptions:
        return IakdOptions(form="two_path", unit="stage")

    def paths(self, step: int) -> list[Path]:
        """All stones but the last, which changes networks only before the head."""
        return self.stones

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        with torch.autocast(outputs.batch.images.device.type, torch.bfloat16, enabled=outputs.autocast):
            last = self._last_stone(outputs.student.blocks[self.pairs[-1].student.last])
        stones = [*(outputs.hybrid_logits[path] for path in self.stones), last]
        terms = {"blockkd": o.kd_weight * kd_divergence(outputs.student_logits, outputs.teacher_logits, o.temperature)}
        labels, teacher = torch.zeros_like(terms["blockkd"]), torch.zeros_like(terms["blockkd"])
        for behind, logits in enumerate(reversed(stones)):
            weight = 2.0**-behind
            if o.label_weight:
                labels = labels + weight * o.label_weight * outputs.cross_entropy(logits)
            divergence = kd_divergence(outputs.transform_logits(logits), outputs.teacher_logits, o.temperature)
            teacher = teacher + weight * o.stone_weight * divergence
        return {**terms, **({"blockkd_labels": labels} if o.label_weight else {}), "blockkd_stones": teacher}

    def _last_stone(self, features: Tensor) -> Tensor:
        after = self.pairs[-1].teacher.after
        connected = resized(self.connector, features, after[1:]) if features.dim() == 4 else self.connector(features)
        logits: Tensor = self._head[0](connected)
        return logits
