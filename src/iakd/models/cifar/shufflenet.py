"""ShuffleNets as the benchmark for 32×32 images has them: V1 (Zhang et al. 2018) with 3 groups, V2 (Ma et al. 2018) 1×.

Their stem is a 1×1 convolution that keeps the image's size. Weights are torch's own, as in RepDistiller.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.models.network import Block, Network, ReluBlock, draw_uniformly

STEM = 24
BLOCKS = (4, 8, 4)  # of each stage, the reducing one included
CHANNELS = {"ShuffleV1": (240, 480, 960), "ShuffleV2": (116, 232, 464)}
GROUPS = 3  # V1
FEATURES = 1024  # V2: of a last 1×1 convolution
ARCHITECTURES = list(CHANNELS)


def shuffle(features: Tensor, groups: int) -> Tensor:
    """Interleave the groups' channels: the first of each group, then the second of each, …"""
    batch, channels, height, width = features.shape
    split = features.view(batch, groups, channels // groups, height, width)
    return split.transpose(1, 2).reshape(batch, channels, height, width)


class GroupedBlock(ReluBlock):
    """V1: grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; with stride 2 joined to the averaged input, else added.

    (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool) -> None:
        super().__init__(in_channels, out_channels)
        self.stride = stride
        own = out_channels - in_channels if stride == 2 else out_channels  # the rest is the averaged input
        hidden = own // 4
        self.groups = 1 if first else GROUPS  # the stem's few channels are not grouped
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, own, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)

    def preactivation(self, features: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(features)), inplace=True), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)), inplace=True)))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(features, 3, 2, padding=1)], dim=1)
        out += features
        return out


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class SplitBlock(ReluBlock):
    """V2: one half of the channels passes, the other through 1×1, depthwise 3×3, 1×1; then they are shuffled.

    With stride 2 both branches see all channels, and the first is convolved too.
    (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels)
        half = out_channels // 2
        self.left: nn.Module | None = None
        entering = half
        if stride == 2:
            self.left = nn.Sequential(*_depthwise(in_channels, 2), *_pointwise(in_channels, half))
            entering = in_channels
        self.right = nn.Sequential(*_pointwise(entering, half), *_depthwise(half, stride), *_pointwise(half, half))

    def preactivation(self, features: Tensor) -> Tensor:
        """What passes unchanged was activated before, and stays as it is when it is once more."""
        if isinstance(self.left, nn.Sequential):
            out = torch.cat([self.left[:-1](features), self.right[:-1](features)], dim=1)
        else:
            left, right = features.chunk(2, dim=1)
            out = torch.cat([left, self.right[:-1](right)], dim=1)
        return shuffle(out, 2)

    def forward(self, features: Tensor) -> Tensor:
        if self.left:
            out = torch.cat([self.left(features), self.right(features)], dim=1)
        else:
            left, right = features.chunk(2, dim=1)
            out = torch.cat([left, self.right(right)], dim=1)
        return shuffle(out, 2)


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of ARCHITECTURES."""
    first_version = network.arch == "ShuffleV1"
    stem = nn.Sequential(*_pointwise(channels, STEM))
    stages = []
    previous = STEM
    for blocks, out in zip(BLOCKS, CHANNELS[network.arch], strict=True):
        stage: list[Block] = []
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            if first_version:
                stage.append(GroupedBlock(previous, out, stride, first=previous == STEM))
            else:
                stage.append(SplitBlock(previous, out, stride))
            previous = out
        stages.append(stage)
    last = [] if first_version else _pointwise(previous, FEATURES)
    head = nn.Sequential(
        *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous if first_version else FEATURES, classes)
    )
    built = Network(stem, stages, head)
    built.draw = {nn.Conv2d: draw_uniformly}
    return built
