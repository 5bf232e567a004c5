"""timm's classifiers, `arch: timm/NAME`, if the package is installed.

A model is divided by the first description that fits, and accepted only if the parts compute what the model computes.
"""

from typing import Any

from torch import Tensor, nn

from iakd import config
from iakd.errors import UserError
from iakd.models.external.partition import Partition, copy_changed_inputs, is_equivalent, missing_module, split_model
from iakd.models.network import Network

PREFIX = "timm/"


class Tokens(nn.Module):
    """A vision transformer's way in, up to its first block, (B, C, H, W) → (B, N, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name in ("patch_embed", "patch_drop", "norm_pre", "pos_drop", "cls_token", "reg_token", "pos_embed"):
            setattr(self, name, getattr(model, name))
        # timm's method that joins tokens and positions reads its settings from the model, which must not become a part
        self._settings = {key: value for key, value in vars(model).items() if not key.startswith("_")}
        self._join = type(model)._pos_embed

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings", {})
        return settings[name] if name in settings else super().__getattr__(name)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._join(self, self.patch_embed(images))))


class Pooled(nn.Module):
    """A vision transformer's pooling of tokens as it was built, (B, N, D) → (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.kind, self.prefix = model.global_pool, model.num_prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.kind == "token" else tokens[:, self.prefix :].mean(dim=1)


PARTITIONS = (
    Partition(  # ResNet and its many relatives
        stem=("conv1", "bn1", "act1", "maxpool"),
        blocks=("layer1.*", "layer2.*", "layer3.*", "layer4.*"),
        head=("global_pool", "fc"),
    ),
    Partition(  # ConvNeXt
        stem=("stem",),
        blocks=tuple(f"stages.{i}.{part}" for i in range(4) for part in ("downsample", "blocks.*")),
        head=("norm_pre", "head"),
        reducers=tuple(f"stages.{i}.downsample" for i in range(4)),
    ),
    Partition(stem=("stem",), blocks=("s1.*", "s2.*", "s3.*", "s4.*"), head=("final_conv", "head")),  # RegNet
    Partition(  # MobileNetV3
        stem=("conv_stem", "bn1"),
        blocks=("blocks.*.*",),
        head=("global_pool", "conv_head", "norm_head", "act2", "flatten", "classifier"),
    ),
    Partition(  # EfficientNet, MobileNetV2, MNASNet
        stem=("conv_stem", "bn1"),
        blocks=("blocks.*.*",),
        head=("conv_head", "bn2", "global_pool", "classifier"),
    ),
    Partition(stem=(Tokens,), blocks=("blocks.*",), head=("norm", Pooled, "fc_norm", "head_drop", "head")),  # ViT, DeiT
)


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build the network `timm/NAME`, without trained weights.

    Raises UserError if timm is missing, does not know the name, or has a model that no description fits.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"{network.arch}: timm is not installed; pip install timm") from None
    name = network.arch.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise UserError(f"{network.arch}: timm has no such model{config.did_you_mean(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels).eval()
    image = (channels, *model.default_cfg["input_size"][1:])
    for scheme in PARTITIONS:
        if missing_module(model, scheme) is None and not (Tokens in scheme.stem and hasattr(model, "dist_token")):
            network_parts = split_model(model, scheme, image)
            copy_changed_inputs(network_parts, image)
            if is_equivalent(model, network_parts, image):
                return network_parts.train()
    raise UserError(
        f"{network.arch}: no description of this family of timm; known are ResNet, ConvNeXt, RegNet, MobileNet, "
        "EfficientNet and ViT, and docs/networks.md says how one is added"
    )
