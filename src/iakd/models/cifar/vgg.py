"""VGG with batch normalisation for small images (Simonyan and Zisserman 2015; sizes of RepDistiller's benchmark).

One linear layer instead of three, and no pooling before the last two groups of convolutions: with 32×32 images both see
4×4 maps, so they are one stage. A block is one convolution; there is no stem, the first block takes the image.
Features are compared after each group but the first, which RepDistiller counts as the stem.
"""

from itertools import accumulate, chain

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

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__(in_channels, out_channels)
        self.pool = pool
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def preactivation(self, features: Tensor) -> Tensor:
        if self.pool:
            window = (min(2, features.shape[2]), min(2, features.shape[3]))
            features = nn.functional.max_pool2d(features, window)
        return self.bn(self.conv(features))


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of ARCHITECTURES; `width` is the number of channels of the first stage (default 64)."""
    stages = []
    previous = channels
    for stage, convolutions in enumerate(CONVOLUTIONS[network.arch]):
        blocks = []
        for block in range(sum(convolutions)):
            out = (network.width or 64) * FACTORS[stage]
            blocks.append(ConvolutionBlock(previous, out, pool=stage > 0 and block == 0))
            previous = out
        stages.append(blocks)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes))
    built = Network(nn.Identity(), stages, head)
    groups = accumulate(chain.from_iterable(CONVOLUTIONS[network.arch]))
    built.level_blocks = [end - 1 for end in groups][1:]
    return built
