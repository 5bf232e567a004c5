"""A forward pass that keeps chosen features, without changing the network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from iakd.errors import UnsuitableSettings
from iakd.models.network import Block, Network


@dataclass(frozen=True)
class FeatureSpec:
    """The features of a forward pass to keep: after these blocks (counted from 0), before the blocks' last activation,
    and others by name.
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


NOTHING = FeatureSpec()
LOGITS = FeatureSpec(logits=True)
POOLED = FeatureSpec(pooled=True)


@dataclass
class Features:
    """The features that a forward pass has kept.

    Maps (B, C, H, W) or tokens (B, N, C) after the stem and after blocks; `unpooled` (B, C, H, W), the input of the
    global pooling; `pooled` (B, D), the input of the last linear layer; `logits` (B, classes). Features that were not
    asked for may be missing.

    `preactivations` are the outputs of blocks before their last activation. In a network of pre-activation blocks
    (`Block.input_norm`) they are what the next block's normalisation returns; if a block has neither, its output.
    """

    blocks: dict[int, Tensor] = field(default_factory=dict)
    preactivations: dict[int, Tensor] = field(default_factory=dict)
    stem: Tensor | None = None
    unpooled: Tensor | None = None
    pooled: Tensor | None = None
    logits: Tensor | None = None


BlockSlot = tuple[int, Callable[[Tensor], Tensor]]  # index of a block, and what is computed in its place


def forward_features(network: Network, images: Tensor, needs: FeatureSpec) -> Features:
    """Run the network on images (B, C, H, W), as far as `needs` requires."""
    return forward_slots(network, images, enumerate(network.blocks), needs)


def forward_slots(network: Network, images: Tensor, slots: Iterable[BlockSlot], needs: FeatureSpec) -> Features:
    """Like `forward_features`, with `slots` in place of the network's blocks."""
    kept = Features()
    features = network.enter(images)
    if needs.stem:
        kept.stem = features
    needs_head = needs.unpooled or needs.pooled or needs.logits
    last = max(needs.blocks | needs.preactivations, default=-1)
    for position, block in slots:
        if not needs_head and position > last:
            return kept
        if position in needs.preactivations and isinstance(block, Block):
            before = block.preactivation(features)
            features = block.activate(before)
        else:
            before = features = block(features)
        if position in needs.preactivations:
            kept.preactivations[position] = _normalise(_next_input_norm(network, position), before)
        if position in needs.blocks:
            kept.blocks[position] = features
    if needs_head:
        _forward_head(network, features, needs, kept)
    return kept


def _next_input_norm(network: Network, position: int) -> nn.Module | None:
    """Return the layer that normalises a block's output, in networks of pre-activation blocks."""
    blocks = network.blocks
    if blocks[position].input_norm is None:
        return None
    if position + 1 < len(blocks):
        return blocks[position + 1].input_norm
    return next(module for module in network.head.modules() if isinstance(module, nn.BatchNorm2d))


def _normalise(layer: nn.Module | None, features: Tensor) -> Tensor:
    """Normalise, by the batch's statistics in training mode, without updating the running statistics."""
    if not isinstance(layer, nn.BatchNorm2d):
        return features
    tracking, layer.track_running_stats = layer.track_running_stats, layer.track_running_stats and not layer.training
    try:
        return layer(features)
    finally:
        layer.track_running_stats = tracking


def _forward_head(network: Network, features: Tensor, needs: FeatureSpec, kept: Features) -> None:
    """Run the head, and keep the inputs of its pooling and its classifier if needed."""
    watched: list[tuple[str, nn.Module]] = []
    if needs.unpooled:
        watched.append(("unpooled", pooling(network)))
    if needs.pooled:
        watched.append(("pooled", classifier(network)))
    handles = [layer.register_forward_pre_hook(partial(_store_input, kept, name)) for name, layer in watched]
    try:
        kept.logits = network.head(features)
    finally:
        for handle in handles:
            handle.remove()


def _store_input(kept: Features, name: str, layer: nn.Module, arguments: tuple[Tensor]) -> None:
    setattr(kept, name, arguments[0])


def pooling(network: Network) -> nn.AdaptiveAvgPool2d:
    """Return the head's global average pooling. Raises UnsuitableSettings if it has none."""
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.AdaptiveAvgPool2d)]
    if not layers:
        raise UnsuitableSettings("a method that uses the last maps needs a network with global average pooling")
    return layers[0]


def classifier(network: Network) -> nn.Linear:
    """Return the network's last linear layer. Raises UnsuitableSettings if it has none."""
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UnsuitableSettings("a method that uses pooled features needs a network that ends in a linear layer")
    return layers[-1]
