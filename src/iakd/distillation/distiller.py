"""Every method of this project: a sum of parts, with the hybrid network in front where `iakd` is among them."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iakd import config
from iakd.data.loader import Batch, DeviceLoader, EpochSubset, ImageLoader
from iakd.distillation.all_gather import terms as terms_of
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, cross_entropy
from iakd.distillation.registry import changes_student, deploy, loss_class
from iakd.distillation.teacher_cache import CacheDir, CachedTeacherOutputs, TeacherOutputs, outputs_suffice
from iakd.interactive.hybrid import Hybrid
from iakd.interactive.swap_sampler import WHOLE_BATCH
from iakd.interactive.swap_sampler import KeepMask as Drawn
from iakd.models import Network
from iakd.models.features import LOGITS, Features, FeatureSpec, forward_features
from iakd.seeding import derive
from iakd.training.timeline import Timeline
from iakd.training.trainer import LossTerms


class Distiller:
    """Trains `network` by `method`; implements `training.loop.Method`. `teacher` is frozen and never changed.

    `network` becomes what is deployed, which is mostly what it is (`methods.deployment`).
    `cache_dir`: where its outputs are kept for other trainings; they change nothing but the time that it takes.
    `processes`: how many share the batches.
    """

    def __init__(
        self,
        network: Network,
        teacher: Network | None,
        method: config.Method,
        schedule: config.Schedule | None,
        timeline: Timeline,
        seed: int,
        data: ImageLoader,
        smoothing: float = 0.0,
        cache_dir: CacheDir | None = None,
        processes: int = 1,
    ) -> None:
        self.network = network
        self.timeline = timeline
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        if teacher and changes_student(method):
            deploy(network, teacher, method, data.image_shape, seed)
        self.options = method.iakd
        self.hybrid: Hybrid | None = None
        if "iakd" in method.names:
            assert teacher is not None and schedule is not None
            self.hybrid = Hybrid(network, teacher, method.iakd, schedule, timeline, seed)
        self.names = method.names
        self.losses = [
            loss_class(name)(LossContext(network, self.teacher, method.options(name), data, timeline, seed))
            for name in self.names
        ]
        for name, part in zip(self.names, self.losses, strict=True):
            part.initialise(torch.Generator().manual_seed(derive("part", name, seed)))
            part.to(data.labels.device)
        self.smoothing = max(smoothing, *(part.smoothing for part in self.losses))
        self._with_terms = [part for part in self.losses if type(part).forward is not DistillationLoss.forward]
        self._two_paths = bool(self.hybrid and self.options.path == "student" and self._with_terms)
        student_features, teacher_features = features_of_losses(self._with_terms)
        if self.hybrid and not self._two_paths:
            self.hybrid.require(student_features)
        self._outputs: TeacherOutputs | CachedTeacherOutputs | None = None
        if self.teacher and outputs_suffice(teacher_features):
            self._outputs = TeacherOutputs(self.teacher, teacher_features, -(-timeline.batch_size // processes))
            if cache_dir and isinstance(data, DeviceLoader):
                self._outputs = CachedTeacherOutputs(self._outputs, data, cache_dir)

    def choose(self, epoch: int) -> EpochSubset | None:
        """The images of an epoch as the parts want them; at most one part does."""
        return next((choice for part in self.losses if (choice := part.choose(epoch))), None)

    def second_view(self, augment: config.Augment) -> config.Augment | None:
        """The augmentation of a second view of each image, if a part wants one; at most one part does."""
        return next((second for part in self.losses if (second := part.second_view(augment))), None)

    def loss(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """The weighted cross-entropy and all terms; the logits returned are those that the cross-entropy sees."""
        active = [part for part in self._with_terms if part.active(step)]
        student_features, teacher_features = features_of_losses(active)
        labelled, taught = self._walks(batch, step, student_features, two=self._two_paths and bool(active))
        assert labelled.logits is not None
        ce = cross_entropy(labelled.logits, batch.labels, self.smoothing, batch.other, batch.share)
        weight = max(part.ce_weight_at(step) for part in self.losses)
        terms = {"ce": weight * ce if weight else torch.zeros_like(ce)}  # at 0 the head has no gradient, so it rests
        if active:
            seen = self._step(batch, step, taught, teacher_features)
            if batch.second is not None:
                other = Batch(batch.second, batch.labels, batch.indices, cut=batch.cut)
                taught = self._taught(other, step, student_features)
                seen = replace(seen, second=self._step(other, step, taught, teacher_features))
            with torch.autocast(batch.images.device.type, enabled=False):
                for part in active:
                    terms |= terms_of(part, seen)
        return terms, labelled.logits

    def _walks(self, batch: Batch, step: int, needs: FeatureSpec, two: bool) -> tuple[Features, Features]:
        """The forward pass whose output learns the labels, and the one that learns from the teacher; mostly one."""
        if self.hybrid and self._two_paths:
            labelled = self.hybrid.walk(batch.images, self._kept(batch, step), LOGITS)
            return labelled, self._taught(batch, step, needs) if two else labelled
        features = self._taught(batch, step, needs)
        return features, features

    def _taught(self, batch: Batch, step: int, needs: FeatureSpec) -> Features:
        if self.hybrid and not self._two_paths:
            return self.hybrid.walk(batch.images, self._kept(batch, step), needs)
        return forward_features(self.network, batch.images, needs)

    def _kept(self, batch: Batch, step: int) -> Sequence[Drawn]:
        """Which way the images go; drawn for the whole batch, of which these may be a part."""
        assert self.hybrid is not None
        part = batch.cut.part if batch.cut else WHOLE_BATCH
        return self.hybrid.draws.at(step, batch.whole, part)

    def _step(self, batch: Batch, step: int, student: Features, teacher_features: FeatureSpec) -> ForwardOutputs:
        teacher = Features()
        if self._outputs:
            teacher = self._outputs(batch)
        elif self.teacher and teacher_features != FeatureSpec():
            with torch.no_grad():
                teacher = forward_features(self.teacher, batch.images, teacher_features)
        assert student.logits is not None
        return ForwardOutputs(
            step,
            batch,
            student,
            teacher,
            self._seen(student.logits),
            None if teacher.logits is None else self._seen(teacher.logits),
            self._seen,
            self.smoothing,
            torch.is_autocast_enabled(batch.images.device.type),
        )

    def _seen(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        for part in self.losses:
            logits = part.transform_logits(logits)
        return logits

    def parameters(self) -> Iterable[nn.Parameter]:
        """Trainable parameters of the network, then those of the adapters and of the parts."""
        yield from (parameter for parameter in self.network.parameters() if parameter.requires_grad)
        if self.hybrid:
            yield from self.hybrid.parameters()
        for part in self.losses:
            yield from (parameter for parameter in part.parameters() if parameter.requires_grad)

    def modules(self) -> Iterable[nn.Module]:
        """Network, teacher, parts, and the teacher's blocks that are swapped in with their adapters."""
        yield self.network
        if self.teacher:
            yield self.teacher
        if self.hybrid:
            yield from self.hybrid.modules()
        yield from self.losses

    def pattern(self, step: int) -> Hashable | None:
        """Which blocks are swapped; None where a part or the swapping itself does something else in every step."""
        if isinstance(self._outputs, CachedTeacherOutputs) or not all(part.graph_safe for part in self._with_terms):
            return None
        kept = self.hybrid.draws.at(step, self.timeline.batch_size) if self.hybrid else ()
        return None if any(isinstance(choice, Tensor) for choice in kept) else tuple(kept)

    def train(self) -> None:
        """Network in training mode; teacher and whatever was copied from it, frozen, in evaluation mode."""
        if self.hybrid:
            self.hybrid.train()
        else:
            self.network.train()
        for part in self.losses:
            part.train()

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """Planned and drawn share of steps in which each student block was kept: `p_planned_<i>`, `p_drawn_<i>`."""
        if not self.hybrid:
            return {}
        planned = self.hybrid.draws.planned(epoch).mean(axis=0)
        drawn = self.hybrid.draws.drawn(epoch).mean(axis=0)
        record = {f"p_planned_{i}": round(float(p), 6) for i, p in enumerate(planned)}
        return record | {f"p_drawn_{i}": round(float(p), 6) for i, p in enumerate(drawn)}

    def record(self) -> dict[str, Any]:
        """What parts found out that a reader should know, by part."""
        found = {name: part.record() for name, part in zip(self.names, self.losses, strict=True)}
        return {name: record for name, record in found.items() if record}

    @torch.no_grad()
    def finish(self, data: ImageLoader, batch_size: int) -> None:
        """Gather the student's BatchNorm statistics anew on its own activations, where asked for."""
        if self._outputs:
            self._outputs.finish()
        if not (self.hybrid and self.options.bn_reestimate):
            return
        self.train()
        layers = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches instead of a moving average
        for batch in data.epoch(0, 0, batch_size, config.Augment()):
            self.network(batch.images)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """What lives beside the network: the adapters around swapped blocks, and what the parts train or remember."""
        state: dict[str, Any] = {"parts": [part.state_dict() for part in self.losses]}
        return state | ({"swapped": self.hybrid.swapped.state_dict()} if self.hybrid else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for part, content in zip(self.losses, state["parts"], strict=True):
            part.load_state_dict(content)
        if self.hybrid:
            self.hybrid.swapped.load_state_dict(state["swapped"])


def features_of_losses(parts: Iterable[DistillationLoss]) -> tuple[FeatureSpec, FeatureSpec]:
    """What they look at together, of the student, whose logits are always looked at, and of the teacher."""
    ours, theirs = LOGITS, FeatureSpec()
    for part in parts:
        ours |= part.student_features
        theirs |= part.teacher_features
    return ours, theirs
