"""Networks of two equal blocks: nothing is smaller that can be swapped."""

import torch
from torch import nn

from iakd.models.cifar.resnet import BasicBlock
from iakd.models.network import Network, initialise

WIDTH = 4


def tiny(seed: int, kind: type[BasicBlock] = BasicBlock) -> Network:
    stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 4))
    net = Network(stem, [[kind(WIDTH, WIDTH, 1, "B") for _ in range(2)]], head, size=8)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def pair(kind: type[BasicBlock] = BasicBlock) -> tuple[Network, Network]:
    """A student of this kind of blocks, and a teacher."""
    return tiny(1, kind), tiny(2)
