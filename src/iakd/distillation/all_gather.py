"""Losses that relate images of a batch which several processes share: each process computes them for all images."""

from dataclasses import replace

from torch import Tensor

from iakd.data.loader import Batch, BatchShard, MixedLabels
from iakd.distillation.loss import DistillationLoss, ForwardOutputs
from iakd.models.features import Features, FeatureSpec
from iakd.training.distributed import all_gather


def terms_of(loss: DistillationLoss, outputs: ForwardOutputs) -> dict[str, Tensor]:
    """Return the terms of `loss` for this process's images, or for the whole batch if it compares images.

    Whole-batch terms are scaled so that, like means over the process's images, they sum to the batch's over processes.
    """
    shard = outputs.batch.shard
    if shard is None or not shard.divided or not loss.cross_sample:
        return loss(outputs)
    factor = 1 / (shard.count * shard.weight)
    return {name: term * factor for name, term in loss(_whole_batch(outputs, loss, shard)).items()}


def _whole_batch(outputs: ForwardOutputs, loss: DistillationLoss, shard: BatchShard) -> ForwardOutputs:
    """Return what `loss` reads of the whole batch's outputs. The images themselves are left out."""
    batch = outputs.batch
    return replace(
        outputs,
        batch=Batch(
            batch.images[:0],
            all_gather(batch.labels, shard),
            all_gather(batch.indices, shard),
            MixedLabels(*(all_gather(value, shard) for value in batch.mixed)) if batch.mixed else None,
        ),
        student=_whole_features(outputs.student, loss.student_features | FeatureSpec(logits=True), shard),
        teacher=_whole_features(outputs.teacher, loss.teacher_features, shard),
        second_view=None if outputs.second_view is None else _whole_batch(outputs.second_view, loss, shard),
    )


def _whole_features(features: Features, spec: FeatureSpec, shard: BatchShard) -> Features:
    """Return the features in `spec` of all images, float32."""

    def gather_if(wanted: bool, values: Tensor | None) -> Tensor | None:
        return all_gather(values.float(), shard) if wanted and values is not None else None

    return Features(
        {block: all_gather(features.blocks[block].float(), shard) for block in sorted(spec.blocks)},
        {block: all_gather(features.preactivations[block].float(), shard) for block in sorted(spec.preactivations)},
        gather_if(spec.stem, features.stem),
        gather_if(spec.unpooled, features.unpooled),
        gather_if(spec.pooled, features.pooled),
        gather_if(spec.logits, features.logits),
    )
