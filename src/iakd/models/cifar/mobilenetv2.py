"""MobileNetV2 (Sandler et al. 2018) as the benchmark for 32×32 images has it: half the width, expansion 6.

Unlike in the original, the second group of blocks keeps its size, the first expands by a convolution too (by 1), and
there is no dropout. Weights are drawn as in RepDistiller, too.
"""

import torch
from torch import Tensor, nn

from iakd import config
from iakd.models.network import Block, Network

STEM, FEATURES = 16, 1280
GROUPS = (  # expansion, channels, blocks, stride of the first
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
ARCHITECTURES = ["MobileNetV2"]


class InvertedResidual(Block):
    """Widen, filter each channel, narrow; a shortcut where the shape stays, (B, in, H, W) → (B, out, ⌈H/stride⌉, …)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__(in_channels, out_channels)
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        out = self.layers(features)
        return features + out if self.residual else out


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build the network of ARCHITECTURES; its stem halves the image."""
    stem = nn.Sequential(
        nn.Conv2d(channels, STEM, 3, 2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
    )
    stages: list[list[Block]] = [[]]
    previous = STEM
    for expansion, out, blocks, stride in GROUPS:
        if stride == 2:
            stages.append([])
        for block in range(blocks):
            stages[-1].append(InvertedResidual(previous, out, expansion, stride if block == 0 else 1))
            previous = out
    head = nn.Sequential(
        nn.Conv2d(previous, FEATURES, 1, bias=False),
        nn.BatchNorm2d(FEATURES),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(FEATURES, classes),
    )
    built = Network(stem, stages, head)
    built.draw = {nn.Conv2d: _draw_convolution, nn.Linear: _draw_classifier}
    return built


def _draw_convolution(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """σ = √(2/(k²·output channels)) whatever the groups: for a depthwise convolution, far less than √(2/k²)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def _draw_classifier(layer: nn.Linear, generator: torch.Generator) -> None:
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
