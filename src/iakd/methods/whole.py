"""Parts that look across the images of a batch which several processes share: each computes their terms of it all."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from iakd.data.batches import Batch
from iakd.data.share import Cut
from iakd.methods.part import Part, Step
from iakd.models.walk import Features, Needs
from iakd.training.parallel import gathered


def terms(part: Part, step: Step) -> dict[str, Tensor]:
    """The part's terms of the batch that `step` shows a share of; all of them, where it is not shared.

    They are weighed so that, like means over the own images, they add up to the batch's over the processes.
    """
    cut = step.batch.cut
    if cut is None or not cut.divided or not part.across_images:
        return part.terms(step)
    factor = 1 / (cut.count * cut.weight)
    return {name: term * factor for name, term in part.terms(_whole(step, part, cut)).items()}


def _whole(step: Step, part: Part, cut: Cut) -> Step:
    """The step as one process would see it, but for the images themselves, as far as the part looks at it."""
    batch = step.batch
    named = {name: getattr(batch, name) for name in ("labels", "indices", "other", "share")}
    theirs: dict[str, Any] = {name: None if value is None else gathered(value, cut) for name, value in named.items()}
    student = _features(step.student, part.student_needs | Needs(logits=True), cut)
    teacher = _features(step.teacher, part.teacher_needs, cut)
    assert student.logits is not None
    return replace(
        step,
        batch=Batch(images=batch.images[:0], **theirs),
        student=student,
        teacher=teacher,
        student_logits=step.seen(student.logits),
        teacher_logits=None if teacher.logits is None else step.seen(teacher.logits),
        second=None if step.second is None else _whole(step.second, part, cut),
    )


def _features(features: Features, needs: Needs, cut: Cut) -> Features:
    """Of all images, float32."""

    def whole(needed: bool, values: Tensor | None) -> Tensor | None:
        return gathered(values.float(), cut) if needed and values is not None else None

    return Features(
        {block: gathered(features.blocks[block].float(), cut) for block in sorted(needs.blocks)},
        {block: gathered(features.preactivations[block].float(), cut) for block in sorted(needs.preactivations)},
        whole(needs.stem, features.stem),
        whole(needs.unpooled, features.unpooled),
        whole(needs.pooled, features.pooled),
        whole(needs.logits, features.logits),
    )
