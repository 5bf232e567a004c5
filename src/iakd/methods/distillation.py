"""Every method of this project: a sum of parts, with the hybrid network in front where `iakd` is among them."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iakd import params
from iakd.data.batches import Batch, Batches, Resident
from iakd.data.choice import Choice
from iakd.data.streams import derive
from iakd.interactive.draws import EVERY
from iakd.interactive.draws import Choice as Drawn
from iakd.interactive.hybrid import Hybrid
from iakd.methods.deployment import changes_student, deploy
from iakd.methods.losses import cross_entropy
from iakd.methods.part import Part, Setting, Step
from iakd.methods.parts import PARTS
from iakd.methods.teacher import CachedOutputs, Outputs, Shelf, suffice
from iakd.methods.whole import terms as terms_of
from iakd.models import Network
from iakd.models.walk import LOGITS, Features, Needs, walk
from iakd.training.loop import LossTerms
from iakd.training.timeline import Timeline


class Distillation:
    """Trains `network` by `method`; implements `training.loop.Method`. `teacher` is frozen and never changed.

    `network` becomes what is deployed, which is mostly what it is (`methods.deployment`).
    `shelf`: where its outputs are kept for other trainings; they change nothing but the time that it takes.
    `processes`: how many share the batches.
    """

    def __init__(
        self,
        network: Network,
        teacher: Network | None,
        method: params.Method,
        schedule: params.Schedule | None,
        timeline: Timeline,
        seed: int,
        data: Batches,
        smoothing: float = 0.0,
        shelf: Shelf | None = None,
        processes: int = 1,
    ) -> None:
        self.network = network
        self.timeline = timeline
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        if teacher and changes_student(method):
            deploy(network, teacher, method, data.image_shape, seed)
        self.options = method.iakd
        self.hybrid: Hybrid | None = None
        if "iakd" in method.parts:
            assert teacher is not None and schedule is not None
            self.hybrid = Hybrid(network, teacher, method.iakd, schedule, timeline, seed)
        setting = Setting(network, self.teacher, method, data, timeline, seed)
        self.names = method.parts
        self.parts = [PARTS[name](setting) for name in self.names]
        for name, part in zip(self.names, self.parts, strict=True):
            part.initialise(torch.Generator().manual_seed(derive("part", name, seed)))
            part.to(data.labels.device)
        self.smoothing = max(smoothing, *(part.smoothing for part in self.parts))
        self._with_terms = [part for part in self.parts if type(part).terms is not Part.terms]
        self._two_paths = bool(self.hybrid and self.options.path == "student" and self._with_terms)
        student_needs, teacher_needs = needs_of(self._with_terms)
        if self.hybrid and not self._two_paths:
            self.hybrid.require(student_needs)
        self._outputs: Outputs | CachedOutputs | None = None
        if self.teacher and suffice(teacher_needs):
            self._outputs = Outputs(self.teacher, teacher_needs, -(-timeline.batch_size // processes))
            if shelf and isinstance(data, Resident):
                self._outputs = CachedOutputs(self._outputs, data, shelf)

    def choose(self, epoch: int) -> Choice | None:
        """The images of an epoch as the parts want them; at most one part does."""
        return next((choice for part in self.parts if (choice := part.choose(epoch))), None)

    def second_view(self, augment: params.Augment) -> params.Augment | None:
        """The augmentation of a second view of each image, if a part wants one; at most one part does."""
        return next((second for part in self.parts if (second := part.second_view(augment))), None)

    def loss(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """The weighted cross-entropy and all terms; the logits returned are those that the cross-entropy sees."""
        active = [part for part in self._with_terms if part.active(step)]
        student_needs, teacher_needs = needs_of(active)
        labelled, taught = self._walks(batch, step, student_needs, two=self._two_paths and bool(active))
        assert labelled.logits is not None
        ce = cross_entropy(labelled.logits, batch.labels, self.smoothing, batch.other, batch.share)
        weight = max(part.label_weight(step) for part in self.parts)
        terms = {"ce": weight * ce if weight else torch.zeros_like(ce)}  # at 0 the head has no gradient, so it rests
        if active:
            seen = self._step(batch, step, taught, teacher_needs)
            if batch.second is not None:
                other = Batch(batch.second, batch.labels, batch.indices, cut=batch.cut)
                taught = self._taught(other, step, student_needs)
                seen = replace(seen, second=self._step(other, step, taught, teacher_needs))
            with torch.autocast(batch.images.device.type, enabled=False):
                for part in active:
                    terms |= terms_of(part, seen)
        return terms, labelled.logits

    def _walks(self, batch: Batch, step: int, needs: Needs, two: bool) -> tuple[Features, Features]:
        """The forward pass whose output learns the labels, and the one that learns from the teacher; mostly one."""
        if self.hybrid and self._two_paths:
            labelled = self.hybrid.walk(batch.images, self._kept(batch, step), LOGITS)
            return labelled, self._taught(batch, step, needs) if two else labelled
        features = self._taught(batch, step, needs)
        return features, features

    def _taught(self, batch: Batch, step: int, needs: Needs) -> Features:
        if self.hybrid and not self._two_paths:
            return self.hybrid.walk(batch.images, self._kept(batch, step), needs)
        return walk(self.network, batch.images, needs)

    def _kept(self, batch: Batch, step: int) -> Sequence[Drawn]:
        """Which way the images go; drawn for the whole batch, of which these may be a part."""
        assert self.hybrid is not None
        part = batch.cut.part if batch.cut else EVERY
        return self.hybrid.draws.at(step, batch.whole, part)

    def _step(self, batch: Batch, step: int, student: Features, teacher_needs: Needs) -> Step:
        teacher = Features()
        if self._outputs:
            teacher = self._outputs(batch)
        elif self.teacher and teacher_needs != Needs():
            with torch.no_grad():
                teacher = walk(self.teacher, batch.images, teacher_needs)
        assert student.logits is not None
        return Step(
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
        for part in self.parts:
            logits = part.view(logits)
        return logits

    def parameters(self) -> Iterable[nn.Parameter]:
        """Trainable parameters of the network, then those of the adapters and of the parts."""
        yield from (parameter for parameter in self.network.parameters() if parameter.requires_grad)
        if self.hybrid:
            yield from self.hybrid.parameters()
        for part in self.parts:
            yield from (parameter for parameter in part.parameters() if parameter.requires_grad)

    def modules(self) -> Iterable[nn.Module]:
        """Network, teacher, parts, and the teacher's blocks that are swapped in with their adapters."""
        yield self.network
        if self.teacher:
            yield self.teacher
        if self.hybrid:
            yield from self.hybrid.modules()
        yield from self.parts

    def pattern(self, step: int) -> Hashable | None:
        """Which blocks are swapped; None where a part or the swapping itself does something else in every step."""
        if isinstance(self._outputs, CachedOutputs) or not all(part.replays for part in self._with_terms):
            return None
        kept = self.hybrid.draws.at(step, self.timeline.batch_size) if self.hybrid else ()
        return None if any(isinstance(choice, Tensor) for choice in kept) else tuple(kept)

    def train(self) -> None:
        """Network in training mode; teacher and whatever was copied from it, frozen, in evaluation mode."""
        if self.hybrid:
            self.hybrid.train()
        else:
            self.network.train()
        for part in self.parts:
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
        found = {name: part.record() for name, part in zip(self.names, self.parts, strict=True)}
        return {name: record for name, record in found.items() if record}

    @torch.no_grad()
    def finish(self, data: Batches, batch_size: int) -> None:
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
        for batch in data.epoch(0, 0, batch_size, params.Augment()):
            self.network(batch.images)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """What lives beside the network: the adapters around swapped blocks, and what the parts train or remember."""
        state: dict[str, Any] = {"parts": [part.state_dict() for part in self.parts]}
        return state | ({"swapped": self.hybrid.swapped.state_dict()} if self.hybrid else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for part, content in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(content)
        if self.hybrid:
            self.hybrid.swapped.load_state_dict(state["swapped"])


def needs_of(parts: Iterable[Part]) -> tuple[Needs, Needs]:
    """What they look at together, of the student, whose logits are always looked at, and of the teacher."""
    ours, theirs = LOGITS, Needs()
    for part in parts:
        ours |= part.student_needs
        theirs |= part.teacher_needs
    return ours, theirs
