"""How alike the features of a network's blocks are: linear centred kernel alignment (Kornblith et al. 2019)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from iakd.models import Network
from iakd.models.walk import Needs, walk


@torch.no_grad()
def block_similarity(network: Network, batches: Iterable[Tensor]) -> Tensor:
    """Linear CKA between the features after all blocks, (L, L) float64 in [0, 1] on the CPU.

    `batches` of at least 4 images (B, C, H, W) each. CKA(i, j) = H(i, j)/√(H(i, i)·H(j, j)), where H is the mean over
    the batches of the unbiased estimate of the Hilbert–Schmidt independence criterion (Nguyen et al. 2021, equations
    2 and 3): one batch's features are in memory at a time, and few images do not make everything look alike.
    """
    count = len(network.blocks)
    total = torch.zeros(count, count, dtype=torch.float64)
    needs = Needs(blocks=frozenset(range(count)))
    for images in batches:
        n = len(images)
        features = walk(network, images, needs).blocks
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
