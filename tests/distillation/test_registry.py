"""The registry of losses, and the features that losses are computed from."""

import pytest
import torch

from iakd import config, models
from iakd.config import METHODS
from iakd.distillation.loss import DistillationLoss
from iakd.distillation.registry import loss_class
from iakd.models.features import LOGITS, FeatureSpec, classifier, forward_features
from iakd.models.network import initialise


def test_every_method_has_the_loss_class_of_its_entry() -> None:
    classes = {name: loss_class(name) for name in METHODS}
    assert all(issubclass(kind, DistillationLoss) for kind in classes.values())
    without = {name for name, kind in classes.items() if kind is DistillationLoss}
    assert without == {"scratch"} and len(set(classes.values())) == len(classes)


def test_options_are_in_a_section_named_after_the_method() -> None:
    for name, entry in METHODS.items():
        if entry.options:
            assert config.Method.model_fields[name].annotation is entry.options


@pytest.mark.parametrize("arch", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2", "torchvision/resnet18"])
def test_forward_features_keeps_what_is_asked_for_and_no_more(arch: str) -> None:
    network = models.build(config.Network(arch=arch), 3, 10)
    initialise(network, torch.Generator().manual_seed(0))
    network.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images)
        seen = forward_features(
            network, images, FeatureSpec(blocks=frozenset({1}), stem=True, pooled=True, logits=True)
        )
        assert seen.logits is not None and torch.equal(seen.logits, expected)
        assert seen.pooled is not None and torch.equal(classifier(network)(seen.pooled), expected)
        assert seen.stem is not None
        assert torch.equal(seen.blocks[1], network.blocks[1](network.blocks[0](seen.stem)))
        assert list(seen.blocks) == [1]
        only = forward_features(network, images, LOGITS)
        assert (only.pooled, only.stem, only.blocks) == (None, None, {})


def test_forward_features_stops_after_the_last_block_needed() -> None:
    network = models.build(config.Network(arch="resnet8"), 3, 10)
    called: list[int] = []
    for position, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, position=position: called.append(position))
    seen = forward_features(network, torch.zeros(2, 3, 8, 8), FeatureSpec(blocks=frozenset({1})))
    assert called == [0, 1] and seen.logits is None
