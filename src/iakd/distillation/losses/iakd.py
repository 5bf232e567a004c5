"""Interactive distillation in its two-path form: hybrid paths beside the student's own."""

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config import Schedule
from iakd.config.method_options import IakdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.distillation.losses.maps import as_maps, convolution_and_norm, match_sizes
from iakd.interactive.paths import Path, PathSampler
from iakd.models.features import LOGITS, FeatureSpec
from iakd.models.shapes import channels


class IakdLoss(DistillationLoss):
    """γ(t)·Σ_π n_π/n·[label_weight·CE(H_π) + teacher_weight·T²·KL(teacher_T ‖ H_π,T)] + seams(t).

    H_π are the logits of the hybrid path π, drawn n_π times of n (`PathSampler`). γ(t) grows linearly to `weight` over
    the first `warmup` of the steps; paths end with the schedule's student_only phase. Seams are
    seam_weight·Σ_i MSE(bridge_i(student's features after slot i), the teacher's), with the same warm-up; a bridge is a
    3×3 convolution and BatchNorm, trained, and discarded in the end.

    The form is ours, in the pattern of FCFD (Liu et al. 2023), whose seams these are. In a sum, the cross-entropy of
    the student has the weight that the other methods give it. The single-path form adds no term.
    """

    ramp: Tensor  # γ(t)/weight, a scalar

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: IakdOptions = context.options
        self.timeline = context.timeline
        self.two_path = self.options.form == "two_path"
        self.register_buffer("ramp", torch.ones((), dtype=torch.float64), persistent=False)
        self.sampler: PathSampler | None = None
        self.bridges = nn.ModuleList()
        if not self.two_path:
            return
        assert context.hybrid is not None and isinstance(self.options.schedule, Schedule)
        o, self.pairs = self.options, context.hybrid.pairs
        self.ce_weight = 1.0 if context.alone else 0.0
        self.sampler = PathSampler(o.paths, o.schedule, self.timeline, len(self.pairs), context.seed, o.paths_per_step)
        if o.teacher_weight:
            self.teacher_features = LOGITS
        if o.seam_weight:
            self.uses_hidden_features = True
            self.bridges.extend(
                convolution_and_norm(channels(pair.student.after), channels(pair.teacher.after)) for pair in self.pairs
            )
            self.student_features = FeatureSpec(blocks=frozenset(pair.student.last for pair in self.pairs))
            self.teacher_features |= FeatureSpec(blocks=frozenset(pair.teacher.last for pair in self.pairs))

    @staticmethod
    def hybrid_options(options: IakdOptions) -> IakdOptions:
        return options

    def paths(self, step: int) -> Mapping[Path, int]:
        """The hybrid paths of a step, and how often each was drawn."""
        return self.sampler.paths(step) if self.sampler and self.options.weight else {}

    def active(self, step: int) -> bool:
        return bool(self.paths(step) or self.bridges)

    def begin_step(self, step: int) -> None:
        if self.two_path and self.share_of_weights(step) < 1:
            self.ramp.fill_(self.share_of_weights(step))

    def graph_key(self, step: int) -> Hashable:
        return (self.share_of_weights(step) < 1, *self.paths(step).items()) if self.active(step) else ()

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """The share of the student in each slot of all paths, planned and drawn, also of those that are no hybrids."""
        return self.sampler.record(epoch) if self.sampler else {}

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        ramp: float | Tensor = self.ramp if self.share_of_weights(outputs.step) < 1 else 1.0
        terms: dict[str, Tensor] = {}
        for path, count in self.paths(outputs.step).items():
            weight = ramp * o.weight * count / o.paths_per_step
            logits = outputs.hybrid_logits[path]
            if o.label_weight:
                _add(terms, "iakd_labels", weight * o.label_weight, outputs.cross_entropy(logits))
            if o.teacher_weight:
                divergence = kd_divergence(outputs.transform_logits(logits), outputs.teacher_logits, o.temperature)
                _add(terms, "iakd_teacher", weight * o.teacher_weight, divergence)
        for pair, bridge in zip(self.pairs if self.bridges else (), self.bridges, strict=True):
            student = bridge(as_maps(outputs.student.blocks[pair.student.last]))
            teacher = as_maps(outputs.teacher.blocks[pair.teacher.last])
            _add(terms, "iakd_seams", ramp * o.seam_weight, F.mse_loss(*match_sizes(student, teacher)))
        return terms

    def share_of_weights(self, step: int) -> float:
        """The share of the final weights at a step, between 0 and 1; while it grows, `ramp` has it on the device."""
        warmup = round(self.options.warmup * self.timeline.total)
        return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _add(terms: dict[str, Tensor], name: str, weight: float | Tensor, value: Tensor) -> None:
    value = (weight.float() if isinstance(weight, Tensor) else weight) * value
    terms[name] = terms[name] + value if name in terms else value
