"""How alike the features of a network's blocks are: linear centred kernel alignment (Kornblith et al. 2019)."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd.data.loader import BatchFormat, ImageLoader
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, as_maps, map_shape, of_one_size
from iakd.errors import UserError
from iakd.models import Network
from iakd.models.features import FeatureSpec, forward_features
from iakd.models.pairing import BlockPair, pair_blocks
from iakd.models.shapes import feature_shapes


@torch.no_grad()
def block_similarity(network: Network, batches: Iterable[Tensor]) -> Tensor:
    """Linear CKA between the features after all blocks, (L, L) float64 in [0, 1] on the CPU.

    `batches` of at least 4 images (B, C, H, W) each. CKA(i, j) = H(i, j)/√(H(i, i)·H(j, j)), where H is the mean over
    the batches of the unbiased estimate of the Hilbert–Schmidt independence criterion (Nguyen et al. 2021, equations
    2 and 3): one batch's features are in memory at a time, and few images do not make everything look alike.
    """
    count = len(network.blocks)
    total = torch.zeros(count, count, dtype=torch.float64)
    needs = FeatureSpec(blocks=frozenset(range(count)))
    for images in batches:
        n = len(images)
        features = forward_features(network, images, needs).blocks
        grams = torch.stack([_centred_gram(features[block]) for block in range(count)]).flatten(1)
        total += (grams @ grams.T / (n * (n - 3))).cpu()
    scale = total.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (total / (scale * scale[:, None])).clamp(0, 1).fill_diagonal_(1)


def _centred_gram(features: Tensor) -> Tensor:
    """Gram matrix (B, B) of the images' features (B, …) without its diagonal, centred so that
    Σ_ij A_ij·B_ij/(n(n − 3)) of two of them is the unbiased criterion (Székely and Rizzo 2014).
    """
    flat = features.float().flatten(1)
    flat = flat - flat.mean(dim=0)  # changes nothing in the end but the rounding
    gram = (flat @ flat.T).double().fill_diagonal_(0)
    n = len(gram)
    rows = gram.sum(dim=1) / (n - 2)
    return (gram - rows - rows[:, None] + rows.sum() / (n - 1)).fill_diagonal_(0)


BATCH = 64  # images whose features are compared at a time
FEWEST = 4  # images that the comparison needs


class HintLoss(DistillationLoss):
    """weight·(mean over the hint points of MSE(adapter(student's features), teacher's features)) beside CE.

    Where the points are is a function of the teacher, the training images and the settings, not of the seed. They are
    a buffer, so that a training that goes on notices if they have moved.
    """

    uses_hidden_features = True
    points: Tensor  # (P,) positions of teacher blocks

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        count = len(context.teacher.blocks)
        if count < self.options.points:
            raise UserError(f"hints.points is {self.options.points} and the teacher has {count} blocks; lower it")
        similarity = block_similarity(context.teacher, _sample(context.data, self.options.images)).numpy()
        clusters = cluster(similarity, self.options.points)
        points = centres(similarity, clusters)
        pairs = pair_blocks(context.teacher, context.student, context.image)
        chosen = [nearest(pairs, point) for point in points]
        self.places = [(pair.student.last, point) for pair, point in zip(chosen, points, strict=True)]
        self.student_features = FeatureSpec(blocks=frozenset(ours for ours, _ in self.places))
        self.teacher_features = FeatureSpec(blocks=frozenset(points))
        shapes = feature_shapes(context.teacher, context.image)[1:]  # after the blocks
        self.adapters = nn.ModuleList(
            Regressor(map_shape(pair.student.after), map_shape(shapes[point]), active=False)
            for pair, point in zip(chosen, points, strict=True)
        )
        self.register_buffer("points", torch.tensor(points))
        self.register_load_state_dict_pre_hook(_refuse_other_points)
        self._record = {
            "cka": similarity.round(4).tolist(),
            "clusters": clusters,
            "points": points,
            "student": [ours for ours, _ in self.places],
        }

    def record(self) -> dict[str, Any]:
        """`cka` between the teacher's blocks, the number of each one's cluster, and the positions of the hint points
        and of the student's blocks that get the hints.
        """
        return self._record

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        losses = [
            hint_loss(adapter(as_maps(outputs.student.blocks[ours])), as_maps(outputs.teacher.blocks[theirs]))
            for adapter, (ours, theirs) in zip(self.adapters, self.places, strict=True)
        ]
        return {"hints": self.options.weight * torch.stack(losses).mean()}


def _refuse_other_points(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Raise UserError where the hint points are not those of a checkpoint that is loaded."""
    points = state_dict.get(f"{prefix}points")
    if points is not None and points.tolist() != module.points.tolist():  # type: ignore[operator]
        raise UserError(
            "hints: on this machine the teacher's blocks fall into other clusters than where the run began; "
            "go on there, or delete its checkpoint to train it from its start"
        )


def _sample(data: ImageLoader, count: int) -> Iterator[Tensor]:
    """The same `count` images for every training on these data, in batches."""
    size = min(BATCH, len(data), count)
    if size < FEWEST:
        raise UserError(f"hints compares the teacher's blocks on {FEWEST} training images at least; there are {size}")
    batches = islice(data.epoch(0, 0, BatchFormat(size)), count // size)
    return (batch.images for batch in batches if len(batch.images) >= FEWEST)


def cluster(similarity: NDArray[np.float64], count: int) -> list[int]:
    """Numbers 0 … of the clusters of L blocks, `count` of them or fewer where blocks are equal, in order of depth.

    Hierarchical, by the average of 1 − similarity (L, L) between two clusters.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # takes its time to import
    from scipy.spatial.distance import squareform

    if len(similarity) == 1:
        return [0]
    found = fcluster(linkage(squareform(1 - similarity, checks=False), "average"), count, "maxclust").tolist()
    order = list(dict.fromkeys(found))
    return [order.index(number) for number in found]


def centres(similarity: NDArray[np.float64], clusters: list[int]) -> list[int]:
    """The block of each cluster that is most alike all of its cluster, the earliest of equals; in order of depth."""
    points = []
    for number in range(max(clusters) + 1):
        members = [block for block, other in enumerate(clusters) if other == number]
        within = similarity[np.ix_(members, members)].sum(axis=1)
        points.append(members[int(within.argmax())])
    return sorted(points)


def nearest(pairs: list[BlockPair], block: int) -> BlockPair:
    """The pair in the stage of a teacher's block that ends nearest to it, so that the student has got as far."""
    home = next(pair for pair in pairs if pair.teacher.first <= block <= pair.teacher.last)
    same_stage = [pair for pair in pairs if pair.stage == home.stage]
    return min(same_stage, key=lambda pair: abs(pair.teacher.last - block))


def hint_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of maps (B, C, H, W) and (B, C, H', W'); the larger ones are averaged to the smaller."""
    return F.mse_loss(*of_one_size(ours, theirs))
