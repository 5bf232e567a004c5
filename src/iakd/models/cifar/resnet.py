"""ResNets for small images (He et al. 2016, section 4.2) and the four-times-wide ones of RepDistiller's benchmark."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from iakd import config
from iakd.models.network import Block, Network, ReluBlock

DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)  # 6n + 2 layers: three stages of n blocks
ARCHITECTURES = [f"resnet{depth}" for depth in DEPTHS] + [f"resnet{depth}x4" for depth in DEPTHS]


class PaddedIdentity(nn.Module):
    """Shortcut option A: every stride-th pixel, new channels zero; no parameters.

    Half of the new channels are in front of the old ones, or, `at_end`, all behind them.
    """

    averaged = False  # averages over stride × stride pixels instead: iakd.models.variants

    def __init__(self, in_channels: int, out_channels: int, stride: int, at_end: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.before = 0 if at_end else (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, features: Tensor) -> Tensor:
        if self.averaged:
            features = F.avg_pool2d(features, self.stride, ceil_mode=True, count_include_pad=False)
        else:  # the same as a slice, whose gradient has another memory layout
            features = F.avg_pool2d(features, 1, self.stride)
        return F.pad(features, (0, 0, 0, 0, self.before, self.after))


class ResidualBlock(ReluBlock):
    """ReLU(residual + shortcut); subclasses define `residual`. Of the last ReLU there are other forms (`last_relu`)."""

    shortcut: nn.Module
    last_relu: Literal["after", "before", "none"] = "after"  # the addition: iakd.models.variants

    def residual(self, features: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError

    def preactivation(self, features: Tensor) -> Tensor:
        out = self.residual(features)
        if self.last_relu == "before":
            return self.relu(out) + self.shortcut(features)
        out += self.shortcut(features)
        return out

    def activate(self, features: Tensor) -> Tensor:
        return super().activate(features) if self.last_relu == "after" else features

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) if self.last_relu == "after" else self.preactivation(features)


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions and a shortcut, (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__(in_channels, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut != "B":
            self.shortcut = PaddedIdentity(in_channels, out_channels, stride, at_end=shortcut == "A_end")
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def residual(self, features: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)), inplace=True)))


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of ARCHITECTURES; `width` is the number of channels of the first stage (default 16, wide ones
    64).
    """
    wide = network.arch.endswith("x4")
    depth = int(network.arch.removeprefix("resnet").removesuffix("x4"))
    width = network.width or (64 if wide else 16)
    stem_width = max(1, width // 2) if wide else width
    stem = nn.Sequential(
        nn.Conv2d(channels, stem_width, 3, padding=1, bias=False), nn.BatchNorm2d(stem_width), nn.ReLU(inplace=True)
    )
    stages = []
    previous = stem_width
    for stage in range(3):
        blocks = []
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(BasicBlock(previous, width * 2**stage, stride, network.shortcut))
            previous = width * 2**stage
        stages.append(blocks)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes))
    return Network(stem, stages, head)


BLOCKS = {
    "ResNet18": (2, 2, 2, 2),
    "ResNet34": (3, 4, 6, 3),
    "ResNet50": (3, 4, 6, 3),
    "ResNet101": (3, 4, 23, 3),
    "ResNet152": (3, 8, 36, 3),
}
BOTTLENECK_ARCHITECTURES = list(BLOCKS)
EXPANSION = 4


class Bottleneck(ResidualBlock):
    """Narrow by 1×1, 3×3, widen by 1×1, and a shortcut, (B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels)
        hidden = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def residual(self, features: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(features)), inplace=True)
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)), inplace=True)))


def build_bottleneck(network: config.Network, channels: int, classes: int) -> Network:
    """Build a network of BOTTLENECK_ARCHITECTURES; `width` is the number of channels of the stem (default 64)."""
    width = network.width or 64
    basic = network.arch in ("ResNet18", "ResNet34")
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
    stages = []
    previous = width
    for stage, blocks in enumerate(BLOCKS[network.arch]):
        out = width * 2**stage * (1 if basic else EXPANSION)
        members: list[Block] = []
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            members.append(BasicBlock(previous, out, stride, "B") if basic else Bottleneck(previous, out, stride))
            previous = out
        stages.append(members)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes))
    return Network(stem, stages, head)
