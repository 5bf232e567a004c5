"""A forward pass that keeps what somebody wants to look at on the way, without a change to the network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from iakd.errors import UserError
from iakd.models.network import Block, Network


@dataclass(frozen=True)
class FeatureSpec:
    """What is looked at of a forward pass: features after these blocks (counted from 0), the same before their last
    activation, and the rest by name.
    """

    blocks: frozenset[int] = frozenset()
    preactivations: frozenset[int] = frozenset()
    stem: bool = False
    unpooled: bool = False
    pooled: bool = False
    logits: bool = False

    def __or__(self, other: "FeatureSpec") -> "FeatureSpec":
        return FeatureSpec(
            self.blocks | other.blocks,
            self.preactivations | other.preactivations,
            self.stem or other.stem,
            self.unpooled or other.unpooled,
            self.pooled or other.pooled,
            self.logits or other.logits,
        )


LOGITS = FeatureSpec(logits=True)
POOLED = FeatureSpec(pooled=True)


@dataclass
class Features:
    """What a walk has kept: maps (B, C, H, W) or tokens (B, N, C) after the stem and after blocks, `unpooled`
    (B, C, H, W), which is what the global pooling takes, `pooled` (B, D), which is what the last linear layer takes,
    and `logits` (B, classes). What was not needed may be missing.

    `preactivations` are what blocks give before their last activation. Where a network activates at the beginning of
    the next block instead (`Block.entry`), they are what that one normalises; where it does neither, the features.
    """

    blocks: dict[int, Tensor] = field(default_factory=dict)
    preactivations: dict[int, Tensor] = field(default_factory=dict)
    stem: Tensor | None = None
    unpooled: Tensor | None = None
    pooled: Tensor | None = None
    logits: Tensor | None = None


BlockSlot = tuple[int, Callable[[Tensor], Tensor]]  # position of a block, and what stands there


def forward_features(network: Network, images: Tensor, needs: FeatureSpec) -> Features:
    """The network's forward pass on images (B, C, H, W), as far as it is needed."""
    return forward_slots(network, images, enumerate(network.blocks), needs)


def forward_slots(network: Network, images: Tensor, places: Iterable[BlockSlot], needs: FeatureSpec) -> Features:
    """The same with other blocks in the network's places."""
    kept = Features()
    features = network.enter(images)
    if needs.stem:
        kept.stem = features
    to_the_end = needs.unpooled or needs.pooled or needs.logits
    last = max(needs.blocks | needs.preactivations, default=-1)
    for position, block in places:
        if not to_the_end and position > last:
            return kept
        if position in needs.preactivations and isinstance(block, Block):
            before = block.before_activation(features)
            features = block.activate(before)
        else:
            before = features = block(features)
        if position in needs.preactivations:
            kept.preactivations[position] = _normalised(_next_entry(network, position), before)
        if position in needs.blocks:
            kept.blocks[position] = features
    if to_the_end:
        _finish(network, features, needs, kept)
    return kept


def _next_entry(network: Network, position: int) -> nn.Module | None:
    """The layer that normalises what a block gives, in networks whose blocks normalise first."""
    blocks = network.blocks
    if blocks[position].entry is None:
        return None
    if position + 1 < len(blocks):
        return blocks[position + 1].entry
    return next(module for module in network.head.modules() if isinstance(module, nn.BatchNorm2d))


def _normalised(layer: nn.Module | None, features: Tensor) -> Tensor:
    """By the batch's statistics where the layer is in training mode, but its running ones are not moved."""
    if not isinstance(layer, nn.BatchNorm2d):
        return features
    tracking, layer.track_running_stats = layer.track_running_stats, layer.track_running_stats and not layer.training
    try:
        return layer(features)
    finally:
        layer.track_running_stats = tracking


def _finish(network: Network, features: Tensor, needs: FeatureSpec, kept: Features) -> None:
    """The head, and what two of its layers take."""
    watched: list[tuple[str, nn.Module]] = []
    if needs.unpooled:
        watched.append(("unpooled", pooling(network)))
    if needs.pooled:
        watched.append(("pooled", classifier(network)))
    handles = [layer.register_forward_pre_hook(partial(_note, kept, name)) for name, layer in watched]
    try:
        kept.logits = network.head(features)
    finally:
        for handle in handles:
            handle.remove()


def _note(kept: Features, name: str, layer: nn.Module, arguments: tuple[Tensor]) -> None:
    setattr(kept, name, arguments[0])


def pooling(network: Network) -> nn.AdaptiveAvgPool2d:
    """The layer of the head that takes the means of maps. Raises UserError where there is none."""
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.AdaptiveAvgPool2d)]
    if not layers:
        raise UserError("a method that looks at the last maps needs a network whose head takes their means")
    return layers[0]


def classifier(network: Network) -> nn.Linear:
    """The network's last linear layer. Raises UserError where there is none."""
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError("a method that looks at pooled features needs a network that ends in a linear layer")
    return layers[-1]
