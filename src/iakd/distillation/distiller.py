"""The distiller: computes the loss of a batch for every method, from the forward passes that its losses ask for.

A method is a sum of losses. In the single-path form of `iakd`, the hybrid network takes the student's place; in its
two-path form, hybrid paths are computed beside the student's own.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iakd import config
from iakd.config import METHODS
from iakd.data.loader import Batch, BatchFormat, DeviceLoader, EpochData, ImageLoader
from iakd.distillation.all_gather import terms_of
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, cross_entropy
from iakd.distillation.losses.lower_bits import LowerBitsLoss
from iakd.distillation.registry import changes_student, deploy, loss_class
from iakd.distillation.teacher_cache import CacheDir, CachedTeacherOutputs, TeacherOutputs, outputs_suffice
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid
from iakd.interactive.paths import Path
from iakd.interactive.swap_sampler import WHOLE_BATCH, SwapSampler
from iakd.models import Network
from iakd.models.external.black_box import BlackBox
from iakd.models.features import LOGITS, NOTHING, Features, FeatureSpec, forward_features
from iakd.models.network import Frozen
from iakd.models.pairing import BlockPair
from iakd.models.quantisation import bit_widths, each_bits
from iakd.seeding import derive
from iakd.training.timeline import Timeline
from iakd.training.trainer import LossTerms, Objective


class Distiller(Objective):
    """What a student's training minimises. Build it with `make_distiller`.

        batch ─┬─ student, or hybrid ─ Features ─┬─ cross-entropy ───────────────┬─ sum of terms
               ├─ teacher (frozen) ── Features ──┴─ losses(ForwardOutputs) ──────┘
               └─ hybrid paths that losses ask for ── logits ──┘

    The hybrid takes the student's place where there is a `sampler` (the single-path form of IAKD). Its parameters are
    those of the student, of the hybrid's adapters and of the losses; its state_dict leaves the teacher out. What the
    losses read of the teacher comes from `teacher_outputs`, or else from a forward pass on each batch.
    """

    def __init__(
        self,
        student: Network,
        losses: Mapping[str, DistillationLoss],
        timeline: Timeline,
        teacher: Network | None = None,
        hybrid: Hybrid | None = None,
        sampler: SwapSampler | None = None,
        label_smoothing: float = 0.0,
        teacher_outputs: TeacherOutputs | CachedTeacherOutputs | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.timeline = timeline
        self.path: nn.Module = hybrid or student  # the hybrid holds the student
        self.losses = nn.ModuleDict(losses)
        self.frozen_teacher = Frozen(teacher) if teacher else None
        self.sampler = sampler
        self.label_smoothing = max(label_smoothing, *(loss.label_smoothing for loss in losses.values()))
        self._with_terms = _with_terms(losses.values())
        if hybrid and sampler:
            hybrid.require(_features_of(self._with_terms)[0])
        self._outputs = teacher_outputs
        self._begun = -1  # the step that the losses are prepared for
        self.class_weights = class_weights

    @property
    def student(self) -> Network:
        """The network that is trained and deployed."""
        path = self.path
        assert isinstance(path, Hybrid | Network)
        return path.student if isinstance(path, Hybrid) else path

    @property
    def teacher(self) -> Network | None:
        """The frozen teacher, where the method needs one."""
        if self.frozen_teacher is None:
            return None
        network = self.frozen_teacher.module
        assert isinstance(network, Network)
        return network

    @property
    def hybrid(self) -> Hybrid | None:
        """The student with teacher blocks swapped in, where the method swaps."""
        return self.path if isinstance(self.path, Hybrid) else None

    @property
    def compares_outputs(self) -> bool:
        """Whether a loss reads the teacher's logits, for which both networks need the same classes."""
        return _features_of(self._with_terms)[1].logits

    def lr_factors(self) -> dict[nn.Parameter, float]:
        return {parameter: factor for loss in self._losses() for parameter, factor in loss.lr_factors().items()}

    @property
    def peer(self) -> Network | None:
        return next((peer for loss in self._losses() if (peer := loss.peer_network())), None)

    def epoch_data(self, epoch: int, augment: config.Augment) -> EpochData:
        asked = [loss.epoch_data(epoch, augment) for loss in self._losses()]
        return EpochData(
            next((data.subset for data in asked if data.subset), None),
            next((data.second_view for data in asked if data.second_view), None),
        )

    def begin_step(self, step: int) -> None:
        if step != self._begun:
            self._begun = step
            for loss in self._losses():
                loss.begin_step(step)

    def forward(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """The weighted cross-entropy and all terms, and the logits (B, classes) that the cross-entropy sees."""
        self.begin_step(step)
        counting = [loss for loss in self._losses() if loss.alone_at(step)] or list(self._losses())
        active = [loss for loss in self._with_terms if loss in counting and loss.active(step)]
        student_spec, teacher_spec = _features_of(active)
        paths = list(dict.fromkeys(path for loss in active for path in loss.paths(step)))
        student_prefix, teacher_prefix = self.hybrid.prefixes(paths) if paths and self.hybrid else (NOTHING, NOTHING)
        taught = self._forward_taught(batch, step, student_spec | student_prefix)
        assert taught.logits is not None
        ce = cross_entropy(taught.logits, batch.labels, self.label_smoothing, batch.mixed, self.class_weights)
        weight = max(loss.ce_weight_at(step) for loss in counting)
        terms = {"ce": weight * ce if weight else torch.zeros_like(ce)}  # at 0 the head gets no gradient, so it rests
        if active:
            outputs = self._forward_outputs(batch, step, taught, teacher_spec, teacher_prefix, paths)
            if batch.second_view is not None:
                second = Batch(batch.second_view, batch.labels, batch.indices, shard=batch.shard)
                second_taught = self._forward_taught(second, step, student_spec)
                second_outputs = self._forward_outputs(second, step, second_taught, teacher_spec)
                outputs = dataclasses.replace(outputs, second_view=second_outputs)
            with torch.autocast(batch.images.device.type, enabled=False):
                for loss in active:
                    terms |= terms_of(loss, outputs)
        return terms, taught.logits.detach()  # several processes would look for its gradient

    def _forward_taught(self, batch: Batch, step: int, spec: FeatureSpec) -> Features:
        """The path that learns the labels and that losses compare with the teacher: the hybrid's or the student's."""
        if self.sampler is None:
            return forward_features(self.student, batch.images, spec)
        assert self.hybrid is not None
        part = batch.shard.part if batch.shard else WHOLE_BATCH  # swaps are drawn for the whole batch
        return self.hybrid.forward_features(batch.images, self.sampler.masks(step, batch.whole_size, part), spec)

    def _forward_outputs(
        self,
        batch: Batch,
        step: int,
        student: Features,
        teacher_spec: FeatureSpec,
        teacher_prefix: FeatureSpec = NOTHING,
        paths: Sequence[Path] = (),
    ) -> ForwardOutputs:
        """What the losses read; `teacher_prefix`: the teacher's features from which `paths` start."""
        teacher = self._forward_teacher(batch, teacher_spec, teacher_prefix)
        hybrid_features: dict[Path, dict[int, Tensor]] = {path: {} for path in paths}
        hybrid_logits: dict[Path, Tensor] = {}
        if self.hybrid and paths:
            images, batch_norm = batch.images, self.hybrid.options.teacher_bn
            followed = teacher if batch_norm == "eval" else self.hybrid.forward_teacher(images, paths)
            for path, after in hybrid_features.items():
                hybrid_logits[path] = self.hybrid.forward_path(images, path, student, followed, after)
        return ForwardOutputs(
            step,
            batch,
            student,
            teacher,
            self._transform_logits,
            self.label_smoothing,
            torch.is_autocast_enabled(batch.images.device.type),
            hybrid_logits,
            hybrid_features,
            class_weights=self.class_weights,
        )

    @torch.no_grad()
    def _forward_teacher(self, batch: Batch, spec: FeatureSpec, prefix: FeatureSpec) -> Features:
        if self.teacher is None or spec | prefix == NOTHING:
            return Features()
        if self._outputs:
            return self._outputs(batch, prefix)
        return forward_features(self.teacher, batch.images, spec | prefix)

    def _transform_logits(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        for loss in self._losses():
            logits = loss.transform_logits(logits)
        return logits

    def _losses(self) -> Iterable[DistillationLoss]:
        return self.losses.values()  # type: ignore[return-value]  # torch's annotation: modules

    def graph_key(self, step: int) -> Hashable | None:
        if isinstance(self._outputs, CachedTeacherOutputs) or isinstance(self.teacher, BlackBox):
            return None  # reads a disk, or may do anything
        keys = [loss.graph_key(step) for loss in self._losses() if loss in self._with_terms or _begins_steps(loss)]
        masks = tuple(self.sampler.masks(step, self.timeline.batch_size)) if self.sampler else ()
        return None if None in keys or any(isinstance(mask, Tensor) for mask in masks) else (masks, *keys)

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """Mean planned and drawn keep probability of each block slot, and what losses have to say."""
        record = self.sampler.record(epoch) if self.sampler else {}
        for loss in self._losses():
            record |= loss.epoch_record(epoch)
        return record

    def record(self) -> dict[str, Any]:
        """What the losses found out, by method."""
        found = {name: loss.record() for name, loss in zip(self.losses, self._losses(), strict=True)}
        return {name: record for name, record in found.items() if record}

    def finish(self, data: ImageLoader, batch_size: int) -> None:
        """Release the teacher cache; re-estimate BatchNorm statistics on the student's own activations, if asked."""
        if self._outputs:
            self._outputs.finish()
        for loss in self._losses():
            loss.finish()
        if not (self.hybrid and self.hybrid.options.bn_reestimate):
            return
        self.train()
        reestimate_statistics(self.student, data, batch_size)


@torch.no_grad()
def reestimate_statistics(student: Network, data: ImageLoader, batch_size: int) -> None:
    """Let the student's BatchNorm statistics be the means over the batches of an epoch, for each of its bit-widths.

    Layers in evaluation mode, which are frozen, keep theirs.
    """
    layers = [m for m in student.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches instead of a moving average
    for _ in each_bits(student):
        for batch in data.epoch(0, 0, BatchFormat(batch_size)):
            student(batch.images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def make_distiller(
    student: Network,
    teacher: Network | None,
    method: config.Method,
    *,
    data: ImageLoader,
    timeline: Timeline,
    seed: int,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    cache_dir: CacheDir | None = None,
    processes: int = 1,
) -> Distiller:
    """The distiller that trains `student` by `method`. `student` is turned into what the method deploys.

    `teacher` becomes frozen and is never changed. `processes` share every batch. `class_weights`: see `weights_of`.
    Raises UserError for networks that the method cannot be used with.
    """
    if teacher:
        teacher.eval().requires_grad_(False)
        if changes_student(method):
            deploy(student, teacher, method, data.image_shape, seed)
    joined = (loss_class(name).hybrid_options(method.options(name)) for name in method.names)
    options = next((each for each in joined if each), None)
    hybrid = sampler = None
    if options:
        assert teacher is not None
        hybrid = Hybrid(student, teacher, options, seed)
        if options.form == "single_path":
            sampler = hybrid.make_sampler(timeline, seed, data.image_shape)
    built: dict[str, DistillationLoss] = {}
    levels: Sequence[BlockPair] = ()
    for name in sorted(method.names, key=lambda name: not METHODS[name].joins):  # those that change others come first
        alone = len(method.names) == 1
        chosen = levels if METHODS[name].compares_levels else ()
        context = LossContext(method.options(name), student, teacher, data, timeline, seed, hybrid, alone, chosen)
        built[name] = loss = loss_class(name)(context)
        levels = loss.levels or levels
        loss.initialise(torch.Generator().manual_seed(derive("part", name, seed)))
        loss.to(data.labels.device)
    losses = {name: built[name] for name in method.names}
    if bit_widths(student):
        losses["lower_bits"] = LowerBitsLoss(LossContext(None, student, teacher, data, timeline, seed), losses.values())
    outputs = _teacher_outputs(teacher, losses.values(), -(-timeline.batch_size // processes), data, cache_dir)
    return Distiller(student, losses, timeline, teacher, hybrid, sampler, label_smoothing, outputs, class_weights)


def weights_of(recipe: config.Recipe, data: ImageLoader, classes: Sequence[str]) -> Tensor | None:
    """Return the recipe's weight of each class, float32 (classes,) on the device of the training images; None: all 1.

    The mean over the images that an epoch shows is 1, so that the learning rate means the same. Raises UserError for an
    unknown class.
    """
    if recipe.class_weights is None:
        return None
    counts = data.labels.cpu().bincount(minlength=len(classes)).double()
    present = (counts > 0).double()
    if recipe.class_weights == "balanced":
        weights = present / counts.clamp(min=1)
    else:
        weights = torch.ones(len(classes), dtype=torch.float64)
        check_class_weights(recipe, classes)
        for name, weight in recipe.class_weights.items():
            weights[classes.index(name)] = weight
    shown = present if recipe.sampler == "balanced" else counts
    return (weights * shown.sum() / (weights * shown).sum()).float().to(data.labels.device)


def check_class_weights(recipe: config.Recipe, classes: Sequence[str]) -> None:
    """Raise UserError if the recipe has a weight for an unknown class."""
    for name in recipe.class_weights if isinstance(recipe.class_weights, dict) else ():
        if name not in classes:
            raise UserError(
                f"recipe.class_weights: no class {name!r}{config.did_you_mean(name, classes)}; known: "
                f"{', '.join(classes[:9])}{' …' if len(classes) > 9 else ''}"
            )


def _teacher_outputs(
    teacher: Network | None,
    losses: Iterable[DistillationLoss],
    batch_size: int,
    data: ImageLoader,
    cache_dir: CacheDir | None,
) -> TeacherOutputs | CachedTeacherOutputs | None:
    """What computes the teacher's outputs in batches of one size, or takes them from `cache_dir` where there is one.

    None if the losses read something else of the teacher, or nothing. The cache changes the time, not the results.
    """
    spec = _features_of(_with_terms(losses))[1]
    if teacher is None or not outputs_suffice(spec):
        return None
    outputs = TeacherOutputs(teacher, spec, batch_size)
    return CachedTeacherOutputs(outputs, data, cache_dir) if cache_dir and isinstance(data, DeviceLoader) else outputs


def _with_terms(losses: Iterable[DistillationLoss]) -> list[DistillationLoss]:
    """Return the losses that add terms."""
    return [loss for loss in losses if type(loss).forward is not DistillationLoss.forward]


def _begins_steps(loss: DistillationLoss) -> bool:
    return type(loss).begin_step is not DistillationLoss.begin_step


def _features_of(losses: Iterable[DistillationLoss]) -> tuple[FeatureSpec, FeatureSpec]:
    """What losses read together of the student, whose logits are always computed, and of the teacher."""
    student, teacher = LOGITS, FeatureSpec()
    for loss in losses:
        student |= loss.student_features
        teacher |= loss.teacher_features
    return student, teacher
