"""torchvision's classifiers, cut into parts: the very same function, cost and names."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from iakd import config, models
from iakd.errors import UserError
from iakd.models.external.partition import (
    ExternalBlock,
    Modules,
    check_inputs,
    copy_changed_inputs,
    input_changers,
    split_model,
)
from iakd.models.external.torchvision import PARTITIONS
from iakd.models.flops import model_cost
from iakd.models.network import Network, initialise
from iakd.models.shapes import feature_shapes

ONE_OF_EACH = [  # the smallest of each description
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "convnext_tiny",
    "vit_b_32",
]


def network(name: str, channels: int = 3, classes: int = 1000) -> models.Network:
    return models.build(config.Network(arch=f"torchvision/{name}"), channels, classes)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_parts_compute_what_the_model_computes(name: str) -> None:
    model = get_model(name, weights=None, num_classes=7).eval()
    net = split_model(model, PARTITIONS[name], (3, 224, 224)).eval()
    side = 224 if name.startswith("vit") else 64
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert torch.equal(net(images), model(images))
        features = net.stem(images)
        for block in net.blocks:
            channel = 1 if features.dim() == 4 else 2
            assert features.shape[channel] == block.in_channels
            features = block(features)
            assert features.shape[channel] == block.out_channels
    assert set(net.original_names) == set(model.state_dict()), "every tensor has its name in torchvision"
    assert set(net.original_names.values()) == set(net.state_dict())
    for theirs, ours in net.original_names.items():
        assert torch.equal(model.state_dict()[theirs], net.state_dict()[ours])
    assert input_changers(net, (3, 224, 224)) == (set(), set()), "none has to get a copy"


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "vit_b_32"])
def test_parameters_and_multiply_accumulates_are_the_published_ones(name: str) -> None:
    published = next(iter(get_model_weights(name))).meta
    found = model_cost(network(name), (3, 224, 224))
    assert found["parameters"] == published["num_params"]
    assert round(found["macs"] / 1e9, 3) == published["_ops"]


@pytest.mark.parametrize(
    ("name", "blocks", "sizes"),
    [
        ("resnet50", [3, 4, 6, 3], [56, 28, 14, 7]),
        ("mobilenet_v2", [1, 2, 3, 7, 4], [112, 56, 28, 14, 7]),
        ("efficientnet_b0", [1, 2, 2, 6, 5], [112, 56, 28, 14, 7]),
        ("convnext_tiny", [3, 3, 9, 3], [56, 28, 14, 7]),
    ],
)
def test_stages_are_blocks_of_equal_size(name: str, blocks: list[int], sizes: list[int]) -> None:
    net = network(name)
    assert [len(stage) for stage in net.stages] == blocks
    after = [shape[1] for shape in feature_shapes(net, (3, 224, 224))[1:]]
    assert after == [size for size, count in zip(sizes, blocks, strict=True) for _ in range(count)]


def test_every_name_is_one_of_torchvisions_classifiers() -> None:
    from torchvision.models import list_models

    assert set(PARTITIONS) <= set(list_models())


def test_grey_images() -> None:
    net = network("resnet18", channels=1, classes=5).eval()
    assert net(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    with torch.device("meta"):
        assert "stem.0.weight" in net.state_dict() and net.stem[0].bias is None


def test_a_transformer_names_the_size_that_it_takes() -> None:
    with pytest.raises(UserError, match="not 64×64"):
        network("vit_b_32", classes=5)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_32"])
def test_initialisation_leaves_nothing_to_torchs_own_generator(name: str) -> None:
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(network(name, classes=5))
        initialise(nets[-1], torch.Generator().manual_seed(3))
    one, two = (net.state_dict() for net in nets)
    assert all(torch.equal(one[key], two[key]) for key in one)


class Untold(nn.Module):
    """Needs real values."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * float(features.mean())


@pytest.mark.parametrize(
    ("start", "changes", "untold"),
    [
        (nn.ReLU(), False, False),
        (nn.ReLU(inplace=True), True, False),
        (nn.Dropout(0.5, inplace=True), True, False),  # in training mode alone
        (Untold(), False, True),
    ],
)
def test_parts_that_change_their_input_are_found(start: nn.Module, changes: bool, untold: bool) -> None:
    block = nn.Sequential(start, nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(nn.BatchNorm2d(4), block), nn.Flatten())
    net = Network(Modules(model[0]), [[ExternalBlock(one, 4, 4, nn.Module) for one in model[1]]], Modules(model[2]))
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    changers, unknown = input_changers(net, (1, 8, 8))
    assert changers == ({net.blocks[1]} if changes else set())
    assert unknown == ({net.blocks[1], net.head} if untold else set())
    assert all(map(torch.equal, net.state_dict().values(), before.values())) and net.training
    assert torch.equal(torch.get_rng_state(), state)
    refused = pytest.raises(UserError, match=r"^mine: its block 1 \(ExternalBlock\) changes its input in place")
    with refused if changes else contextlib.nullcontext():
        check_inputs(net, (1, 8, 8), "mine")
    copy_changed_inputs(net, (1, 8, 8))
    assert [block.changes_input for block in net.blocks] == [False, changes or untold]
