"""Wide residual networks for small images (Zagoruyko and Komodakis 2016): pre-activation, no dropout.

`wrn_40_2` has 40 layers and is twice as wide as a plain ResNet.
"""

from torch import Tensor, nn

from iakd import config
from iakd.models.network import Block, Network

DEPTHS = (10, 16, 22, 28, 34, 40)  # 6n + 4 layers: three stages of n blocks
ARCHITECTURES = [f"wrn_{depth}_{widen}" for depth in DEPTHS for widen in (1, 2, 4, 8, 10, 12)]
STEM = 16


class PreActivationBlock(Block):
    """Normalise, activate, convolve, twice, and a shortcut, (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉).

    What goes in and out is the bare sum, before any normalisation. Where the width changes, the shortcut starts from
    the activated input, as in the authors' code, or from the bare one (`raw_shortcut`).
    """

    raw_shortcut = False  # iakd.models.variants

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    @property
    def input_norm(self) -> nn.Module:
        return self.bn1

    def forward(self, features: Tensor) -> Tensor:
        active = self.relu(self.bn1(features), inplace=True)
        out = self.conv2(self.relu(self.bn2(self.conv1(active)), inplace=True))
        out += self.shortcut(features if self.raw_shortcut else active) if self.shortcut else features
        return out


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of ARCHITECTURES; `width` is the number of channels of the first stage (default 16·factor)."""
    depth, widen = (int(part) for part in network.arch.split("_")[1:])
    width = network.width or 16 * widen
    stages = []
    previous = STEM
    for stage in range(3):
        blocks = []
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(PreActivationBlock(previous, width * 2**stage, stride))
            previous = width * 2**stage
        stages.append(blocks)
    head = nn.Sequential(
        nn.BatchNorm2d(previous),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(previous, classes),
    )
    return Network(nn.Conv2d(channels, STEM, 3, padding=1, bias=False), stages, head)
