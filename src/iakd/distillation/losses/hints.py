"""Hints at the centres of clusters of the teacher's blocks, found by centred kernel alignment (CKA)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd.config.method_options import HintPointsOptions, HintsOptions
from iakd.data.loader import BatchFormat, ImageLoader
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, as_maps, map_shape, match_sizes
from iakd.errors import UnsuitableSettings, UserError
from iakd.models import Network
from iakd.models.features import FeatureSpec, forward_features
from iakd.models.pairing import BlockGroup, BlockPair, pair_blocks
from iakd.models.shapes import feature_shapes

BATCH = 64  # images whose features are compared at a time
MIN_IMAGES = 4  # in a batch: the unbiased estimate divides by n − 3


class PointsLoss(DistillationLoss):
    """Base class of losses that find hint points.

    The teacher's blocks are clustered by the similarity of their features; the central block of each cluster is a hint
    point. The points depend on the teacher, the training images and the settings, not on the seed. They are a buffer,
    so that a resumed training notices if they have moved. `name` is the method's.
    Idea: PURSUhInT (Keser et al. 2023); similarity: Kornblith et al. 2019 (see `block_similarity`).
    """

    points: Tensor  # (P,) positions of teacher blocks

    def __init__(self, context: LossContext, name: str) -> None:
        super().__init__(context)
        options: HintsOptions | HintPointsOptions = context.options
        count, blocks = options.points, len(context.teacher.blocks)
        if count != "auto" and blocks < count:
            raise UnsuitableSettings(f"{name}.points is {count}, but the teacher has only {blocks} blocks; lower it")
        similarity = block_similarity(context.teacher, _sample(context.data, options.images, name)).numpy()
        scores = {} if count != "auto" else silhouettes(similarity)
        clusters = cluster(similarity, best_count(scores, blocks) if count == "auto" else count)
        points = centres(similarity, clusters)
        self.pairs = _pairs_at(points, context)  # of a student's block and a hint point, by depth
        self.register_buffer("points", torch.tensor(points))
        self.register_load_state_dict_pre_hook(_require_same_points)
        self._record = {
            "cka": similarity.round(4).tolist(),
            "clusters": clusters,
            "points": points,
            "student": [pair.student.last for pair in self.pairs],
        }
        if scores:
            self._record["silhouettes"] = {str(number): round(score, 4) for number, score in scores.items()}

    def record(self) -> dict[str, Any]:
        """Return `cka` between the teacher's blocks, `clusters`, the cluster of each block, `points`, the positions of
        the hint points, and `student`, those of the student's blocks that get the hints. With automatic points also
        `silhouettes`, the mean silhouette for each number of clusters.
        """
        return self._record


class HintPoints(PointsLoss):
    """No term: the other losses compare features at the hint points instead of at the ends of the student's stages."""

    def __init__(self, context: LossContext) -> None:
        super().__init__(context, "hint_points")
        self.levels = self.pairs


class HintLoss(PointsLoss):
    """CE + weight·mean over the hint points of MSE(adapter(student's features), teacher's features).

    The adapters are trained with the student. Regression: FitNets (Romero et al. 2015).
    """

    uses_hidden_features = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context, "hints")
        self.options: HintsOptions = context.options
        self.block_positions = [(pair.student.last, pair.teacher.last) for pair in self.pairs]
        student_blocks, teacher_blocks = zip(*self.block_positions, strict=True)
        self.student_features = FeatureSpec(blocks=frozenset(student_blocks))
        self.teacher_features = FeatureSpec(blocks=frozenset(teacher_blocks))
        self.adapters = nn.ModuleList(
            Regressor(map_shape(pair.student.after), map_shape(pair.teacher.after), active=False) for pair in self.pairs
        )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        losses = [
            hint_loss(
                adapter(as_maps(outputs.student.blocks[student_block])),
                as_maps(outputs.teacher.blocks[teacher_block]),
            )
            for adapter, (student_block, teacher_block) in zip(self.adapters, self.block_positions, strict=True)
        ]
        return {"hints": self.options.weight * torch.stack(losses).mean()}


def _require_same_points(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Raise UserError if the hint points differ from those of a checkpoint that is loaded."""
    points = state_dict.get(f"{prefix}points")
    if points is not None and points.tolist() != module.points.tolist():  # type: ignore[operator]
        raise UserError(
            "hint points: on this machine the teacher's blocks fall into other clusters than where the run was started;"
            " resume it there, or delete its checkpoint to restart it"
        )


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the MSE of maps (B, C, H, W) and (B, C, H', W'); larger maps are pooled to the smaller size."""
    return F.mse_loss(*match_sizes(student, teacher))


# --- hint points ---


def _sample(data: ImageLoader, count: int, name: str) -> Iterator[Tensor]:
    """Yield batches of the same `count` images for every training on these data; for the method `name`."""
    size = min(BATCH, len(data), count)
    if size < MIN_IMAGES:
        raise UnsuitableSettings(
            f"{name} compares the teacher's blocks on at least {MIN_IMAGES} training images, not {size}"
        )
    batches = islice(data.epoch(0, 0, BatchFormat(size)), count // size)
    return (batch.images for batch in batches if len(batch.images) >= MIN_IMAGES)


@torch.no_grad()
def block_similarity(network: Network, batches: Iterable[Tensor]) -> Tensor:
    """Return linear CKA between the features after all blocks, (L, L) float64 in [0, 1] on the CPU.

    `batches` are images (B, C, H, W), at least 4 each. CKA(i, j) = H(i, j)/√(H(i, i)·H(j, j)) (Kornblith et al. 2019),
    where H is the mean over the batches of the unbiased estimate of the Hilbert–Schmidt independence criterion (Nguyen
    et al. 2021, equations 2 and 3). So only one batch's features are in memory, and the similarity of few images is not
    overestimated.
    """
    count = len(network.blocks)
    total = torch.zeros(count, count, dtype=torch.float64)
    spec = FeatureSpec(blocks=frozenset(range(count)))
    for images in batches:
        n = len(images)
        features = forward_features(network, images, spec).blocks
        grams = torch.stack([_centred_gram(features[block]) for block in range(count)]).flatten(1)
        total += (grams @ grams.T / (n * (n - 3))).cpu()
    scale = total.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (total / (scale * scale[:, None])).clamp(0, 1).fill_diagonal_(1)


def _centred_gram(features: Tensor) -> Tensor:
    """Return the Gram matrix (B, B) of features (B, …) without its diagonal, U-centred.

    Σ_ij A_ij·B_ij/(n(n − 3)) of two of these is the unbiased criterion (Székely and Rizzo 2014).
    """
    flat = features.float().flatten(1)
    flat = flat - flat.mean(dim=0)  # changes the result by rounding only
    gram = (flat @ flat.T).double().fill_diagonal_(0)
    n = len(gram)
    rows = gram.sum(dim=1) / (n - 2)
    return (gram - rows - rows[:, None] + rows.sum() / (n - 1)).fill_diagonal_(0)


def cluster(similarity: NDArray[np.float64], count: int) -> list[int]:
    """Return the cluster (0, 1, …, in order of depth) of each of L blocks.

    Hierarchical clustering by the average of 1 − similarity (L, L) between two clusters, into `count` clusters, or
    fewer if blocks are equal.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import
    from scipy.spatial.distance import squareform

    if len(similarity) == 1:
        return [0]
    found = fcluster(linkage(squareform(1 - similarity, checks=False), "average"), count, "maxclust").tolist()
    order = list(dict.fromkeys(found))
    return [order.index(number) for number in found]


def silhouettes(similarity: NDArray[np.float64]) -> dict[int, float]:
    """Return the mean silhouette of L blocks for each number of clusters from 2 to L − 1.

    A block's silhouette is (b − a)/max(a, b), a its mean distance from the others of its cluster, b that from the
    nearest other cluster, distance 1 − similarity; 0 for a block alone (Rousseeuw 1987). Numbers into which the blocks
    cannot be divided, because some are equal, are left out.
    """
    from sklearn.metrics import silhouette_score  # slow to import

    divisions = {count: cluster(similarity, count) for count in range(2, len(similarity))}
    return {
        count: float(silhouette_score(1 - similarity, clusters, metric="precomputed"))
        for count, clusters in divisions.items()
        if len(set(clusters)) == count
    }


def best_count(scores: dict[int, float], blocks: int) -> int:
    """Return the number of clusters with the highest silhouette, the smallest of several; without any, at most two."""
    return max(scores, key=lambda count: scores[count], default=min(blocks, 2))


def centres(similarity: NDArray[np.float64], clusters: list[int]) -> list[int]:
    """Return the block of each cluster that is most similar to its whole cluster (the first, if equal), by depth."""
    points = []
    for number in range(max(clusters) + 1):
        members = [block for block, other in enumerate(clusters) if other == number]
        within = similarity[np.ix_(members, members)].sum(axis=1)
        points.append(members[int(within.argmax())])
    return sorted(points)


def _pairs_at(points: list[int], context: LossContext) -> list[BlockPair]:
    """Return a pair for each point: the teacher's block there, and the student's nearest blocks of the same stage."""
    pairs = pair_blocks(context.teacher, context.student, context.image)
    shapes, blocks = feature_shapes(context.teacher, context.image), context.teacher.blocks
    return [
        replace(nearest(pairs, point), teacher=BlockGroup(point, [blocks[point]], shapes[point], shapes[point + 1]))
        for point in points
    ]


def nearest(pairs: list[BlockPair], block: int) -> BlockPair:
    """Return the pair that ends nearest to a teacher block and is in the same stage, so that the depths correspond."""
    home = next(pair for pair in pairs if pair.teacher.first <= block <= pair.teacher.last)
    same_stage = [pair for pair in pairs if pair.stage == home.stage]
    return min(same_stage, key=lambda pair: abs(pair.teacher.last - block))
