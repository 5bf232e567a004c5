"""Losses that compare the images of a batch, when several processes share it: each computes them for all images."""

from dataclasses import replace

from torch import Tensor

from iakd.data.loader import Batch, BatchShard, MixedLabels
from iakd.distillation.loss import DistillationLoss, ForwardOutputs
from iakd.models.features import Features, FeatureSpec
from iakd.training.distributed import all_gather


def terms_of(part: DistillationLoss, outputs: ForwardOutputs) -> dict[str, Tensor]:
    """The part's terms of the batch that `outputs` shows a share of; all of them, where it is not shared.

    They are weighed so that, like means over the own images, they add up to the batch's over the processes.
    """
    cut = outputs.batch.shard
    if cut is None or not cut.divided or not part.cross_sample:
        return part(outputs)
    factor = 1 / (cut.count * cut.weight)
    return {name: term * factor for name, term in part(_whole(outputs, part, cut)).items()}


def _whole(outputs: ForwardOutputs, part: DistillationLoss, cut: BatchShard) -> ForwardOutputs:
    """The outputs as one process would see it, but for the images themselves, as far as the part looks at it."""
    batch = outputs.batch
    student = _features(outputs.student, part.student_features | FeatureSpec(logits=True), cut)
    teacher = _features(outputs.teacher, part.teacher_features, cut)
    return replace(
        outputs,
        batch=Batch(
            batch.images[:0],
            all_gather(batch.labels, cut),
            all_gather(batch.indices, cut),
            MixedLabels(*(all_gather(value, cut) for value in batch.mixed)) if batch.mixed else None,
        ),
        student=student,
        teacher=teacher,
        second_view=None if outputs.second_view is None else _whole(outputs.second_view, part, cut),
    )


def _features(features: Features, needs: FeatureSpec, cut: BatchShard) -> Features:
    """Of all images, float32."""

    def whole(needed: bool, values: Tensor | None) -> Tensor | None:
        return all_gather(values.float(), cut) if needed and values is not None else None

    return Features(
        {block: all_gather(features.blocks[block].float(), cut) for block in sorted(needs.blocks)},
        {block: all_gather(features.preactivations[block].float(), cut) for block in sorted(needs.preactivations)},
        whole(needs.stem, features.stem),
        whole(needs.unpooled, features.unpooled),
        whole(needs.pooled, features.pooled),
        whole(needs.logits, features.logits),
    )
