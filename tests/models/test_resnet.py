"""The ResNet family: sizes as published, any input, shortcuts, initialisation."""

import pytest
import torch

from iakd import config, models
from iakd.errors import UserError
from iakd.models.cifar.resnet import BasicBlock
from iakd.models.network import initialise


def network(arch: str, channels: int = 3, classes: int = 100, **options: object) -> models.Network:
    return models.build(config.Network(arch=arch, **options), channels, classes)


@pytest.mark.parametrize(
    ("arch", "millions"),  # RepDistiller's table of networks on CIFAR-100
    [
        ("resnet8", 0.08),
        ("resnet20", 0.28),
        ("resnet32", 0.47),
        ("resnet56", 0.86),
        ("resnet110", 1.74),
        ("resnet8x4", 1.23),
        ("resnet32x4", 7.43),
    ],
)
def test_parameter_counts_are_the_published_ones(arch: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in network(arch).parameters())
    assert round(count / 1e6, 2) == millions


def test_option_a_has_no_shortcut_parameters() -> None:
    # He et al. 2016, table 6: 0.27 M on CIFAR-10 with identity shortcuts
    count = sum(parameter.numel() for parameter in network("resnet20", classes=10, shortcut="A").parameters())
    assert count == 269_722


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (64, 48)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_any_size_and_number_of_channels(size: tuple[int, int], channels: int, shortcut: str) -> None:
    net = network("resnet8", channels, 7, width=4, shortcut=shortcut).eval()
    assert net(torch.randn(2, channels, *size)).shape == (2, 7)


def test_stem_blocks_head_compose_to_the_network() -> None:
    net = network("resnet14", width=4).eval()
    images = torch.randn(2, 3, 16, 16)
    features = net.stem(images)
    for block in net.blocks:
        assert features.shape[1] == block.in_channels
        features = block(features)
        assert features.shape[1] == block.out_channels
    assert torch.equal(net.head(features), net(images))


def test_option_a_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = BasicBlock(4, 8, 2, "A")
    features = torch.randn(1, 4, 6, 6)
    shortcut = block.shortcut(features)
    assert torch.equal(shortcut[:, 2:6], features[:, :, ::2, ::2])
    assert not shortcut[:, :2].any() and not shortcut[:, 6:].any()


def test_initialisation_is_he_and_a_function_of_the_generator() -> None:
    net, again, other = network("resnet20"), network("resnet20"), network("resnet20")
    for target, seed in ((net, 1), (again, 1), (other, 2)):
        initialise(target, torch.Generator().manual_seed(seed))
    weight = net.blocks[-1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not torch.equal(net.stem[0].weight, other.stem[0].weight)


def test_weights_survive_a_round_trip_and_misfits_are_refused() -> None:
    net, copy = network("resnet8", width=4), network("resnet8", width=4)
    models.load_weights(copy, models.save_weights(net), "here")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), copy.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="here: these weights do not fit"):
        models.load_weights(network("resnet8", width=8), models.save_weights(net), "here")
    with pytest.raises(UserError, match="here: these weights do not fit"):
        models.load_weights(copy, models.save_weights(net)[:100], "here")


def test_unknown_architecture_names_a_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet56'"):
        network("resnet65")
