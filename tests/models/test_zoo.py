"""The families for small images: sizes as published, any input, parts that compose, settings that apply."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iakd import config, models
from iakd.errors import UserError
from iakd.models.cifar.shufflenet import shuffle
from iakd.models.flops import block_costs, model_cost
from iakd.models.network import initialise
from iakd.models.shapes import feature_shapes

# Parameters with 100 classes: what RepDistiller's definitions give, which papers round to two decimals of a million.
# WRN-28-10: 36.5 M in Zagoruyko and Komodakis, table 4.
PUBLISHED = {
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "wrn_28_10": 36_536_884,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
    "ResNet50": 23_705_252,
}
SMALL = ["wrn_16_1", "wrn_10_2", "vgg8", "vgg11", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"]


def network(arch: str, channels: int = 3, classes: int = 100, **options: object) -> models.Network:
    return models.build(config.Network(arch=arch, **options), channels, classes)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameter_counts_are_the_published_ones(arch: str) -> None:
    with torch.device("meta"):
        assert parameters(network(arch)) == PUBLISHED[arch]


def test_vggs_have_the_convolutions_of_the_paper() -> None:
    """Simonyan and Zisserman, table 1: layers with weights, of which this family has one linear layer, not three."""
    for arch, layers in (("vgg11", 11), ("vgg13", 13), ("vgg16", 16), ("vgg19", 19)):
        with torch.device("meta"):
            assert len(network(arch).blocks) == layers - 3


@pytest.mark.parametrize(
    ("arch", "millions"),  # by hand from the layers' shapes; WRN-40-2 is 0.33 G, ResNet-50 1.30 G in papers' tables
    [("wrn_16_2", 101), ("wrn_40_2", 328), ("vgg8", 96), ("vgg13", 285), ("ResNet50", 1298)],
)
def test_multiply_accumulates_are_the_published_ones(arch: str, millions: int) -> None:
    assert round(model_cost(network(arch), (3, 32, 32))["macs"] / 1e6) == millions


@pytest.mark.parametrize("arch", SMALL)
def test_parts_compose_to_the_network_and_know_their_channels(arch: str) -> None:
    net = network(arch, classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    features = net.stem(images)
    shapes = [features.shape[1:]]
    for block in net.blocks:
        assert features.shape[1] == block.in_channels
        features = block(features)
        assert features.shape[1] == block.out_channels
        shapes.append(features.shape[1:])
    assert torch.equal(net.head(features), net(images))
    assert feature_shapes(net, (3, 32, 32)) == [tuple(shape) for shape in shapes]


@pytest.mark.parametrize("arch", [*SMALL, "resnet8"])
def test_a_stage_has_one_size_and_its_first_block_reduces_to_it(arch: str) -> None:
    net = network(arch)
    sizes = [shape[1] for shape in feature_shapes(net, (3, 32, 32))]
    position = 0
    for number, stage in enumerate(net.stages):
        inside = sizes[position + 1 : position + 1 + len(stage)]
        assert len(set(inside)) == 1
        if number:
            assert inside[0] == sizes[position] // 2
        position += len(stage)


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (5, (33, 47))])
def test_any_size_and_number_of_channels(arch: str, channels: int, size: tuple[int, int]) -> None:
    net = network(arch, channels, classes=4).eval()
    assert net(torch.randn(2, channels, *size)).shape == (2, 4)


def test_block_costs_add_up_to_the_blocks_share_of_the_whole() -> None:
    net = network("wrn_16_1")
    rows = block_costs(net, (3, 32, 32))
    whole = model_cost(net, (3, 32, 32))
    outside = 32 * 32 * 3 * 16 * 9 + 64 * 100  # stem's convolution and the linear layer
    assert sum(row["macs"] for row in rows) == whole["macs"] - outside
    assert sum(row["parameters"] for row in rows) == whole["parameters"] - parameters(net.stem) - parameters(net.head)


@pytest.mark.parametrize(("arch", "times"), [("wrn_16_2", 4), ("vgg8", 4), ("ResNet50", 4), ("resnet20", 4)])
def test_half_the_width_is_about_a_quarter_of_the_parameters(arch: str, times: float) -> None:
    full = {"wrn_16_2": 32, "vgg8": 64, "ResNet50": 64, "resnet20": 16}[arch]
    with torch.device("meta"):
        whole, same, half = (parameters(network(arch, width=width)) for width in (None, full, full // 2))
    assert whole == same
    assert whole / half == pytest.approx(times, rel=0.15)


@pytest.mark.parametrize(
    ("arch", "setting"),
    [
        ("MobileNetV2", {"width": 32}),
        ("ShuffleV1", {"width": 240}),
        ("torchvision/resnet18", {"width": 32}),
        ("vgg8", {"shortcut": "A"}),
        ("wrn_16_2", {"shortcut": "A"}),
    ],
)
def test_a_setting_that_an_architecture_has_no_use_for_is_refused(arch: str, setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{arch} comes with one {next(iter(setting))} only"):
        network(arch, **setting)


@pytest.mark.parametrize(
    ("wrong", "near"), [("wrn-40-2", "wrn_40_2"), ("mobilenetv2", "MobileNetV2"), ("torchvision/resnet51", "resnet5")]
)
def test_an_unknown_architecture_names_a_near_one(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '.*{near}"):
        network(wrong)


def test_a_name_with_a_slash_makes_no_folder() -> None:
    assert config.Network(arch="torchvision/resnet50").name == "torchvision_resnet50"
    assert config.Network(arch="wrn_40_2", width=8).name == "wrn_40_2w8"


# --- what makes a family what it is ---


def test_a_pre_activation_block_passes_its_bare_input_on() -> None:
    """With the second convolution at zero the block is the identity, negative numbers and all."""
    block = network("wrn_16_2").stages[0][1].eval()
    nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(features), features)


def test_shuffle_interleaves_groups() -> None:
    features = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(features, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffle(features, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_half_of_a_shufflenet_v2_block_passes_untouched() -> None:
    block = network("ShuffleV2").stages[0][1].eval()
    features = torch.randn(2, 116, 4, 4)
    assert torch.equal(block(features)[:, ::2], features[:, :58])


# --- initialisation ---


@pytest.mark.parametrize("arch", SMALL)
def test_initialisation_is_a_function_of_the_generator(arch: str) -> None:
    nets = []
    for torch_seed, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(torch_seed)
        nets.append(network(arch))
        initialise(nets[-1], torch.Generator().manual_seed(seed))
    one, again, other = (list(net.parameters()) for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_depthwise_convolutions_are_scaled_by_what_one_channel_feeds() -> None:
    depthwise, grouped = nn.Conv2d(4000, 4000, 3, groups=4000), nn.Conv2d(300, 600, 1, groups=3)
    initialise(nn.ModuleList([depthwise, grouped]), torch.Generator().manual_seed(0))
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    assert grouped.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert not depthwise.bias.any()


def initialised(arch: str, **options: object) -> models.Network:
    drawn = network(arch, **options)
    initialise(drawn, torch.Generator().manual_seed(0))
    return drawn


def layers(drawn: models.Network, kind: type[nn.Module]) -> dict[str, nn.Module]:
    return {name: layer for name, layer in drawn.named_modules() if isinstance(layer, kind)}


def spread(weight: Tensor) -> tuple[float, float]:
    """Measured σ, and how far it may be off: five standard errors of the estimate for normal numbers."""
    return weight.std().item(), 5 * (2 * weight.numel()) ** -0.5


@pytest.mark.parametrize("bits", [None, 4])
def test_mobilenetv2_starts_as_the_benchmarks_does(bits: int | None) -> None:
    """RepDistiller's models/mobilenetv2.py: convolutions σ = √(2/(k·k·output channels)), the classifier σ = 0.01."""
    drawn = initialised("MobileNetV2", bits=bits)
    convolutions = layers(drawn, nn.Conv2d)
    assert sum(layer.groups > 1 for layer in convolutions.values()) == 17  # type: ignore[operator]
    for name, layer in convolutions.items():
        assert isinstance(layer, nn.Conv2d)
        sigma, tolerance = spread(layer.weight)
        expected = (2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels)) ** 0.5
        assert sigma == pytest.approx(expected, rel=tolerance), name
    (classifier,) = layers(drawn, nn.Linear).values()
    assert isinstance(classifier, nn.Linear)
    assert spread(classifier.weight)[0] == pytest.approx(0.01, rel=0.02)
    assert not classifier.bias.any()


@pytest.mark.parametrize("arch", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_are_initialised_as_torch_does(arch: str) -> None:
    """RepDistiller's models/ShuffleNetv1.py and ShuffleNetv2.py draw nothing again: uniform in ±1/√fan-in."""
    drawn = initialised(arch)
    kinds = set()
    for name, layer in layers(drawn, nn.Conv2d).items():
        assert isinstance(layer, nn.Conv2d)
        kinds.add((layer.kernel_size[0], min(layer.groups, 4)))
        bound = (layer.in_channels / layer.groups * layer.kernel_size[0] * layer.kernel_size[1]) ** -0.5
        sigma, tolerance = spread(layer.weight)
        assert layer.weight.abs().max() <= bound, name
        assert sigma == pytest.approx(bound / 3**0.5, rel=tolerance), name
    assert (3, 4) in kinds and (1, 1) in kinds  # depthwise and 1×1
    (classifier,) = layers(drawn, nn.Linear).values()
    assert isinstance(classifier, nn.Linear)
    bound = classifier.in_features**-0.5
    for parameter in (classifier.weight, classifier.bias):
        assert 0.9 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("arch", ["resnet20", "resnet8x4", "wrn_16_2", "vgg8", "ResNet18"])
def test_ordinary_networks_are_initialised_as_ever_bit_for_bit(arch: str) -> None:
    """As RepDistiller's models/resnet.py: He et al. with fan-out; the classifier as torch does."""
    drawn, again = initialised(arch), network(arch)
    generator = torch.Generator().manual_seed(0)
    for layer in again.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
    expected = again.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in drawn.state_dict().items())


def test_normalisation_layers_start_as_the_identity_and_constants_stay() -> None:
    layers = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False)])
    for layer in layers[:3]:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    scale, positions = nn.Parameter(torch.full((4,), 1e-6)), nn.Parameter(torch.randn(500, 4))
    layers.register_parameter("scale", scale)
    layers.register_parameter("positions", positions)
    initialise(layers, torch.Generator().manual_seed(0))
    for layer in layers[:3]:
        assert torch.equal(layer.weight, torch.ones(4)) and not layer.bias.any()
    assert torch.equal(scale, torch.full((4,), 1e-6))
    assert positions.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_table_in_the_docs_is_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| ([\d +]+) \| ([\d,]+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) > 30
    for arch, blocks, count, _ in rows:
        net = network(arch, classes=1000 if "/" in arch else 100)
        assert f"{parameters(net):,}" == count, arch
        assert " + ".join(str(len(stage)) for stage in net.stages) == blocks, arch
