"""torchvision's classifiers, `arch: torchvision/NAME`; each family is divided by one description of module paths."""

from typing import Any

import torch
from torch import Tensor, nn

from iakd import config
from iakd.errors import UserError
from iakd.models.external.partition import Partition, change_channels, split_model
from iakd.models.network import Network

PREFIX = "torchvision/"


class Tokens(nn.Module):
    """The input of the vision transformer, (B, C, H, W) → (B, N, D): patches behind a class token, with positions
    added.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.pos_embedding = model.encoder.pos_embedding
        self.dropout = model.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        if tokens.shape[1:] != self.pos_embedding.shape[1:]:
            raise UserError(
                f"this vision transformer takes images of one size only, not {images.shape[2]}×{images.shape[3]}; "
                "choose dataset.size to fit it, or a convolutional network"
            )
        return self.dropout(tokens + self.pos_embedding)


class ClassToken(nn.Module):
    """The first token, (B, N, D) → (B, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def _flatten(model: nn.Module) -> nn.Module:
    return nn.Flatten(1)


def _pool(model: nn.Module) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


def _class_token(model: nn.Module) -> nn.Module:
    return ClassToken()


RESNET = Partition(
    stem=("conv1", "bn1", "relu", "maxpool"),
    blocks=("layer1.*", "layer2.*", "layer3.*", "layer4.*"),
    head=("avgpool", _flatten, "fc"),
)
REGNET = Partition(
    stem=("stem",),
    blocks=("trunk_output.*.*",),
    head=("avgpool", _flatten, "fc"),
)
CONVNEXT = Partition(
    stem=("features.0",),
    blocks=(
        "features.1.*",
        *(path for i in (2, 4, 6) for path in (f"features.{i}", f"features.{i + 1}.*")),
    ),
    head=("avgpool", "classifier"),
    reducers=("features.2", "features.4", "features.6"),
)
VIT = Partition(stem=(Tokens,), blocks=("encoder.layers.*",), head=("encoder.ln", _class_token, "heads"))


def _mobilenet(last: int, pool: str | None = "avgpool") -> Partition:
    """features.0, one block each in features.1 … last - 1, features.last."""
    blocks = tuple(f"features.{i}" for i in range(1, last))
    return Partition(("features.0",), blocks, (f"features.{last}", pool or _pool, _flatten, "classifier"))


def _efficientnet(stages: int) -> Partition:
    blocks = tuple(f"features.{i}.*" for i in range(1, stages + 1))
    return Partition(("features.0",), blocks, (f"features.{stages + 1}", "avgpool", _flatten, "classifier"))


FAMILIES: tuple[tuple[Partition, tuple[str, ...]], ...] = (
    (
        RESNET,
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
        ),
    ),
    (_mobilenet(18, pool=None), ("mobilenet_v2",)),
    (_mobilenet(12), ("mobilenet_v3_small",)),
    (_mobilenet(16), ("mobilenet_v3_large",)),
    (_efficientnet(7), tuple(f"efficientnet_b{i}" for i in range(8))),
    (_efficientnet(6), ("efficientnet_v2_s",)),
    (_efficientnet(7), ("efficientnet_v2_m", "efficientnet_v2_l")),
    (
        REGNET,
        tuple(
            f"regnet_{kind}_{size}"
            for kind in "xy"
            for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
        ),
    ),
    (CONVNEXT, ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")),
    (VIT, ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")),
)
PARTITIONS = {name: scheme for scheme, names in FAMILIES for name in names}
ARCHITECTURES = [PREFIX + name for name in PARTITIONS]
SIZE = 224


def weights_address(arch: str, weights: str) -> str:
    """Return the address of torchvision's weights of this name. Raises UserError if there are none."""
    from torchvision.models import get_model_weights

    known = get_model_weights(arch.removeprefix(PREFIX)).__members__
    if weights not in known:
        near = config.did_you_mean(weights, known)
        raise UserError(f"torchvision has no weights {weights!r} of {arch}{near}; it has {', '.join(known)}")
    return str(known[weights].url)


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build the network `torchvision/NAME`, without trained weights. Raises UserError for an unknown name."""
    from torchvision.models import get_model

    name = network.arch.removeprefix(PREFIX)
    if name not in PARTITIONS:
        near = config.did_you_mean(network.arch, ARCHITECTURES)
        raise UserError(f"network {network.name}: unknown arch {network.arch!r}{near}; docs/networks.md lists them")
    model = get_model(name, weights=None, num_classes=classes)
    change_channels(model, channels)
    return split_model(model, PARTITIONS[name], (channels, SIZE, SIZE))
