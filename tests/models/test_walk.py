"""Features before activations: what a walk keeps of them, and that keeping them changes nothing else."""

import pytest
import torch
import torch.nn.functional as F

from iakd import config, models
from iakd.models.features import LOGITS, FeatureSpec, forward_features
from iakd.models.network import initialise

RECTIFIED = ["resnet14", "resnet8x4", "vgg11", "ShuffleV1", "ShuffleV2", "ResNet18", "ResNet50"]
OTHERS = ["wrn_16_2", "MobileNetV2", "torchvision/resnet18"]


def network(arch: str) -> models.Network:
    net = models.build(config.Network(arch=arch), 3, 10)
    initialise(net, torch.Generator().manual_seed(0))
    return net.eval()


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("arch", RECTIFIED + OTHERS)
def test_activating_what_was_before_gives_the_output_bit_by_bit(arch: str) -> None:
    net = network(arch)
    features = net.enter(IMAGES)
    for block in net.blocks:
        before, after = block.preactivation(features), block(features)
        assert torch.equal(block.activate(before), after)
        assert (before < 0).any() == (arch in RECTIFIED or (after < 0).any())
        features = after


@torch.no_grad()
@pytest.mark.parametrize("arch", RECTIFIED + OTHERS)
def test_a_walk_that_keeps_preactivations_computes_the_same(arch: str) -> None:
    net = network(arch)
    places = frozenset({0, len(net.blocks) - 1})
    seen = forward_features(net, IMAGES, FeatureSpec(blocks=places, preactivations=places) | LOGITS)
    plain = forward_features(net, IMAGES, FeatureSpec(blocks=places) | LOGITS)
    assert torch.equal(seen.logits, plain.logits)
    assert list(seen.preactivations) == sorted(places)
    for place in places:
        assert torch.equal(seen.blocks[place], plain.blocks[place])
        if arch in RECTIFIED:
            assert torch.equal(F.relu(seen.preactivations[place]), seen.blocks[place])
    early = forward_features(net, IMAGES, FeatureSpec(preactivations=frozenset({0})))
    assert early.logits is None and torch.equal(early.preactivations[0], seen.preactivations[0])


@torch.no_grad()
def test_networks_that_normalise_first_are_seen_behind_their_next_normalisation() -> None:
    net = network("wrn_16_2")
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2), layer.bias.normal_()
    seen = forward_features(net, IMAGES, FeatureSpec(blocks=frozenset({1, 5}), preactivations=frozenset({1, 5})))
    assert torch.equal(seen.preactivations[1], net.blocks[2].bn1(seen.blocks[1]))
    assert torch.equal(seen.preactivations[5], net.head[0](seen.blocks[5]))


def test_looking_behind_a_normalisation_in_training_does_not_move_its_statistics() -> None:
    looked, plain = network("wrn_16_2").train(), network("wrn_16_2").train()
    seen = forward_features(looked, IMAGES, FeatureSpec(preactivations=frozenset({3})) | LOGITS)
    forward_features(plain, IMAGES, LOGITS)
    for ours, theirs in zip(looked.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.allclose(seen.preactivations[3].mean((0, 2, 3)), torch.zeros(64), atol=1e-5)
