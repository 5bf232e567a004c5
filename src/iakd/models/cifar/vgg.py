"""VGG with batch normalisation for small images (Simonyan and Zisserman 2015; sizes of RepDistiller's benchmark).

One linear layer instead of three, and no pooling before the last two groups of convolutions: with 32×32 images both see
4×4 maps, so they are one stage. A block is one convolution; there is no stem, the first block takes the image.
Features are compared after each group but the first, which RepDistiller counts as the stem.
"""

from collections.abc import Callable
from itertools import accumulate, chain

import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.models.network import Network, ReluBlock

CONVOLUTIONS = {  # by stage and group; times the channels below
    "vgg8": ((1,), (1,), (1,), (1, 1)),
    "vgg11": ((1,), (1,), (2,), (2, 2)),
    "vgg13": ((2,), (2,), (2,), (2, 2)),
    "vgg16": ((2,), (2,), (3,), (3, 3)),
    "vgg19": ((2,), (2,), (4,), (4, 4)),
}
FACTORS = (1, 2, 4, 8)  # channels of each stage, in units of the first
ARCHITECTURES = list(CONVOLUTIONS)


class ConvolutionBlock(ReluBlock):
    """3×3 convolution, normalisation, ReLU, after 2×2 max pooling if `pool`, (B, in, H, W) → (B, out, ⌊H/2⌋, ⌊W/2⌋).

    A map of a single row or column is not pooled in that direction, so that small images fit too.
    """

    pooling: Callable[..., Tensor] = staticmethod(F.max_pool2d)  # or averages: iakd.models.variants

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__(in_channels, out_channels)
        self.pool = pool
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def preactivation(self, features: Tensor) -> Tensor:
        if self.pool:
            features = self.pooling(features, _window(features))
        return self.bn(self.conv(features))


def _window(features: Tensor) -> tuple[int, int]:
    return min(2, features.shape[2]), min(2, features.shape[3])


class LastPooling(nn.AdaptiveAvgPool2d):
    """2×2 pooling after the last group, and the mean over what is left, (B, C, H, W) → (B, C, 1, 1)."""

    pool = True
    pooling: Callable[..., Tensor] = staticmethod(F.max_pool2d)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.pooling(features, _window(features)))


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of ARCHITECTURES; `width` is the number of channels of the first stage (default 64).

    With the variant `pool_every_group`, each group of convolutions is a stage, and 2×2 pooling follows each.
    """
    every = "pool_every_group" in network.variant
    stages: list[list[ConvolutionBlock]] = []
    previous = channels
    for factor, groups in zip(FACTORS, CONVOLUTIONS[network.arch], strict=True):
        for convolutions in groups if every else (sum(groups),):
            blocks = []
            for block in range(convolutions):
                out = (network.width or 64) * factor
                blocks.append(ConvolutionBlock(previous, out, pool=bool(stages) and block == 0))
                previous = out
            stages.append(blocks)
    pooling = LastPooling(1) if every else nn.AdaptiveAvgPool2d(1)
    head = nn.Sequential(pooling, nn.Flatten(), nn.Linear(previous, classes))
    built = Network(nn.Identity(), stages, head)
    ends = accumulate(chain.from_iterable(CONVOLUTIONS[network.arch]))
    built.level_blocks = [end - 1 for end in ends][1:]
    return built
