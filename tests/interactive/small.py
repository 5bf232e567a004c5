"""Small, fast networks."""

import torch
from torch import nn

from iakd import config, models
from iakd.models.network import initialise


def network(arch: str, seed: int, width: int = 4) -> models.Network:
    net = models.build(config.Network(arch=arch, width=width), channels=1, classes=10)
    initialise(net, torch.Generator().manual_seed(seed))
    for module in net.modules():  # running statistics unlike those of a fresh network
        if isinstance(module, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(seed + 1)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net
