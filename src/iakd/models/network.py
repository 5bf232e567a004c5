"""The one interface of all networks: head ∘ block_L ∘ … ∘ block_1 ∘ stem."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A unit that interactive distillation can swap; it knows how many channels it takes and gives."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels


class Network(nn.Module):
    """An image classifier, (B, C, H, W) float → (B, classes) logits.

    `stages` hold blocks of equal spatial size; a stage's first block is the one that reduces it.
    """

    def __init__(self, stem: nn.Module, stages: Iterable[Iterable[Block]], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.head = head

    @property
    def blocks(self) -> list[Block]:
        """All blocks from the first to the last."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return self.head(features)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew from `generator`: convolutions after He et al. 2015 (fan-out, ReLU), linear layers
    uniform in ±1/√fan-in, normalisation layers as the identity with fresh statistics.
    """
    for layer in module.modules():
        match layer:
            case nn.Conv2d():
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            case nn.Linear():
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
            case nn.BatchNorm2d():
                layer.reset_parameters()
