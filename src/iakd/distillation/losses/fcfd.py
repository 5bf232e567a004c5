"""Function-consistent distillation: features are alike if later blocks of both networks do the same with them."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config import IakdOptions
from iakd.config.method_options import FcfdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.distillation.losses.maps import convolution_and_norm, match_sizes, require_maps
from iakd.interactive.paths import Path
from iakd.models.features import FeatureSpec
from iakd.models.network import Block, ReluBlock, initialise
from iakd.models.pairing import BlockGroup
from iakd.models.shapes import channels
from iakd.seeding import derive

PATHS_PER_STEP = 2
SLOPE = 0.1  # of a bridge's LeakyReLU


class FCFDLoss(DistillationLoss):
    """CE + kd_weight·KL(S) + path_weight·Σ_π KL(H_π) + ramp(t)·appearance_weight·Σ MSE, KL = T²·KL(teacher_T ‖ ·_T).

    π are two of the paths that change networks once, between two stages, drawn without replacement in each step. The
    MSE are distances from the teacher's maps after each stage: of the student's maps through a bridge, and of a
    student-to-teacher path's maps after each of the teacher's stages; after the last stage also of their means over
    positions, after a ReLU. ramp grows by equal steps over the first `warmup_epochs`. A bridge is a 3×3 convolution
    and BatchNorm, and LeakyReLU where it leads to blocks that come after a ReLU; paths change networks through the same
    bridges, all of which are discarded. In both the paths and the targets, the teacher's BatchNorm normalises by the
    batch; the student's running statistics are those of its own path.

    Liu et al., Function-Consistent Feature Distillation, ICLR 2023; formula and weights as in the authors' code.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        require_maps(context, "fcfd")
        self.options: FcfdOptions = context.options
        self.ce_weight = self.options.ce_weight
        self.timeline = context.timeline
        self.seed = context.seed
        assert context.hybrid is not None
        self._hybrid = (context.hybrid,)  # the distiller's
        pairs = self.pairs = context.hybrid.pairs
        self.student_features = FeatureSpec(blocks=frozenset(pair.student.last for pair in pairs))
        to_teacher = [bridge(pair.student, pair.teacher) for pair in pairs]
        to_student = [bridge(pair.teacher, pair.student) for pair in pairs[:-1]]
        context.hybrid.use_adapters(to_teacher[:-1], to_student)
        self._inner = [*to_teacher[:-1], *to_student]  # the hybrid has them
        self.last_bridge = to_teacher[-1]
        slots = range(len(pairs))
        self.candidates: list[Path] = [
            tuple((slot < change) == student_first for slot in slots)
            for student_first in (False, True)
            for change in slots[1:]
        ]
        self.teacher_path: Path = (False,) * len(pairs)
        self._epoch = -1
        self._drawn = np.zeros((0, 0), np.int64)

    @staticmethod
    def hybrid_options(options: FcfdOptions) -> IakdOptions:
        return IakdOptions(form="two_path", unit="stage", teacher_bn="batch", student_bn="batch")

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights of all bridges."""
        for layer in (*self._inner, self.last_bridge):
            initialise(layer, generator)

    def paths(self, step: int) -> list[Path]:
        """The paths of a step, after the teacher alone, whose outputs and features are the targets."""
        return [self.teacher_path, *self.hybrid_paths(step)]

    def hybrid_paths(self, step: int) -> list[Path]:
        """The paths that change networks, a function of (seed, epoch, step)."""
        epoch, position = self.timeline.locate(step)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.PCG64(derive("fcfd", self.seed, epoch)))
            uniform = rng.random((self.timeline.steps_in(epoch), len(self.candidates)))
            self._epoch, self._drawn = epoch, np.sort(uniform.argsort(axis=1)[:, :PATHS_PER_STEP], axis=1)
        return [self.candidates[number] for number in self._drawn[position]]

    def graph_key(self, step: int) -> Hashable:
        return (self._ramp(step), *self.hybrid_paths(step))

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        with torch.autocast(outputs.batch.images.device.type, torch.bfloat16, enabled=outputs.autocast):
            seen = self._in_teacher_s_space(outputs)
        targets = outputs.transform_logits(outputs.hybrid_logits[self.teacher_path])
        paths = [
            kd_divergence(outputs.transform_logits(outputs.hybrid_logits[path]), targets, o.temperature)
            for path in self.hybrid_paths(outputs.step)
        ]
        distances = self._distances(seen, outputs.hybrid_features[self.teacher_path])
        return {
            "fcfd": o.kd_weight * kd_divergence(outputs.student_logits, targets, o.temperature),
            "fcfd_paths": o.path_weight * torch.stack(paths).sum(),
            "fcfd_appearance": self._ramp(outputs.step) * o.appearance_weight * torch.stack(distances).sum(),
        }

    def _in_teacher_s_space(self, outputs: ForwardOutputs) -> list[tuple[int, Tensor]]:
        """Slots, and maps that should equal the teacher's after them."""
        hybrid = self._hybrid[0]
        own = [outputs.student.blocks[pair.student.last] for pair in self.pairs]
        image = tuple(outputs.batch.images.shape[1:])
        seen = [(slot, hybrid.to_teacher(slot, maps, image)) for slot, maps in enumerate(own[:-1])]
        seen.append((len(own) - 1, self.last_bridge(own[-1])))
        for path in self.hybrid_paths(outputs.step):
            if path[0]:
                seen += outputs.hybrid_features[path].items()
        return seen

    def _distances(self, seen: list[tuple[int, Tensor]], taught: Mapping[int, Tensor]) -> list[Tensor]:
        distances = []
        for slot, maps in seen:
            student, teacher = match_sizes(maps.float(), taught[slot].float())
            distances.append(F.mse_loss(student, teacher))
            if slot == len(self.pairs) - 1:
                distances.append(F.mse_loss(F.relu(student).mean((2, 3)), F.relu(teacher).mean((2, 3))))
        return distances

    def _ramp(self, step: int) -> float:
        return self.timeline.warmup(step, self.options.warmup_epochs)


def bridge(source: BlockGroup, target: BlockGroup) -> nn.Sequential:
    """Return what turns the maps after `source` into maps like those after `target`, (B, C, H, W) → (B, C', H, W)."""
    layers = convolution_and_norm(channels(source.after), channels(target.after))
    block: Block = target.blocks[-1]
    return layers.append(nn.LeakyReLU(SLOPE)) if isinstance(block, ReluBlock) else layers
