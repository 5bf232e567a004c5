"""Networks of few bits: against torch's own fake quantisation, and as students."""

import math

import pytest
import torch
from torch import nn

from iakd import config, models
from iakd.config import IakdOptions
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid
from iakd.models.flops import bit_operations, model_cost
from iakd.models.network import initialise
from iakd.models.pairing import initialise_from_teacher
from iakd.models.quantisation import (
    QuantisedConv2d,
    Quantiser,
    SwitchableBatchNorm2d,
    at_bits,
    bit_widths,
    each_bits,
    keep_bits,
    nearest,
    quantise,
    set_bits,
    weight_bytes,
)


def network(bits: int | list[int] | None, arch: str = "resnet8", seed: int = 0) -> models.Network:
    net = models.build(config.Network(arch=arch, bits=bits), 3, 10)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_features_as_torch_quantises_them(bits: int) -> None:
    values = torch.linspace(-1.3, 2.9, 203).requires_grad_()
    twin = values.detach().clone().requires_grad_()
    most = 2**bits - 1
    scale, zero = 3.0 / most, round(0.7 * most / 3.0)
    ours = nearest(values, torch.tensor(scale), torch.tensor(float(zero)), 0, most)
    theirs = torch.fake_quantize_per_tensor_affine(twin, scale, zero, 0, most)
    assert torch.allclose(ours, theirs, atol=1e-6)
    weights = torch.randn(203, generator=torch.Generator().manual_seed(0))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert values.grad is not None and twin.grad is not None
    # at the very ends of the range torch lets through half a step more than clamp does
    inside = (values.detach() > -zero * scale) & (values.detach() < (most - zero) * scale)
    assert torch.allclose(values.grad[inside], twin.grad[inside])
    assert not values.grad[(values < -0.7 - scale) | (values > 2.3 + scale)].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_as_torch_quantises_them_and_each_channel_on_its_own_scale(bits: int) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 0.1, 10.0, 0.0, 1e-3]
    ).view(5, 1, 1, 1)
    most = 2 ** (bits - 1) - 1
    scales = weight.flatten(1).abs().amax(1).clamp(min=1e-8) / most
    ours = Quantiser(bits).weight(weight)
    theirs = torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(5, dtype=torch.int32), 0, -most, most)
    assert torch.allclose(ours, theirs, atol=1e-6)
    for channel in ours[[0, 1, 2, 4]]:
        assert len(channel.unique()) <= 2**bits - 1
    assert not ours[3].any()


def test_the_range_follows_the_batches_and_stays_in_evaluation() -> None:
    quantiser = Quantiser(8)
    assert torch.equal(quantiser.eval().input(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0])), "nothing seen yet"
    assert quantiser.range.tolist() == [math.inf, -math.inf]
    quantiser.train()
    quantiser.input(torch.tensor([-1.0, 3.0]))
    assert quantiser.range.tolist() == [-1.0, 3.0], "the first batch sets it"
    quantiser.input(torch.tensor([-2.0, 3.0]))
    assert quantiser.range.tolist() == pytest.approx([-1.1, 3.0])
    quantiser.eval().input(torch.tensor([-100.0, 100.0]))
    assert quantiser.range.tolist() == pytest.approx([-1.1, 3.0])
    assert quantiser.input(torch.tensor([100.0])).item() == pytest.approx(3.0, abs=0.02), "beyond the range: its end"


def test_ends_keep_eight_bits_and_names_stay() -> None:
    plain, few = network(None), network(2)
    layers = [layer for layer in few.modules() if hasattr(layer, "quantiser")]
    assert [layer.quantiser.bits for layer in layers] == [8, *[2] * (len(layers) - 2), 8]
    names = [name for name in few.state_dict() if not name.endswith(".quantiser.range")]
    assert names == list(plain.state_dict())
    assert config.Network(arch="resnet8", bits=4).name == "resnet8_4bit"


def test_bytes_of_weights() -> None:
    plain, few = network(None), network(4)
    assert weight_bytes(plain) == 4 * sum(p.numel() for p in plain.parameters())
    spared = 0
    for layer in few.modules():
        if isinstance(layer, QuantisedConv2d):
            spared += layer.weight.numel() * (24 if layer is few.stem[0] else 28) // 8
    spared += few.head[-1].weight.numel() * 24 // 8
    assert weight_bytes(plain) - weight_bytes(few) == spared


@pytest.mark.parametrize("arch", ["resnet8", "wrn_10_1", "vgg8", "MobileNetV2", "ShuffleV1", "torchvision/resnet18"])
def test_more_bits_come_closer_to_the_full_network(arch: str) -> None:
    full = network(None, arch)
    full(images())  # running statistics unlike those of a fresh network
    distances = []
    for bits in (2, 4, 8):
        few = network(bits, arch, seed=5)
        initialise_from_teacher(few, full)
        few.train()(images())  # the ranges
        few.eval()
        full.eval()
        few.load_state_dict(full.state_dict(), strict=False)
        distances.append((few(images()) - full(images())).abs().mean().item())
    assert distances[0] > distances[1] > distances[2]


def test_a_step_moves_the_weights_under_the_quantisation() -> None:
    few = network(2)
    before = {name: p.clone() for name, p in few.named_parameters()}
    few(images()).square().sum().backward()
    torch.optim.SGD(few.parameters(), 0.01).step()
    moved = [name for name, p in few.named_parameters() if not torch.equal(p, before[name])]
    assert {"stem.0.weight", "stages.1.0.conv1.weight", "head.2.weight"} <= set(moved)


def test_weights_survive_saving() -> None:
    few = network(4)
    few(images())
    twin = network(4, seed=9)
    models.load_weights(twin, models.save_weights(few), "here")
    assert torch.equal(few.eval()(images()), twin.eval()(images()))
    assert isinstance(few.stem[0], nn.Conv2d)


def test_a_network_of_few_bits_is_swapped_with_its_own_full_precision() -> None:
    """Precision swap: teacher and student are one architecture; a swapped place computes with all bits."""
    teacher, student = network(None).eval(), network(2, seed=3)
    hybrid = Hybrid(student, teacher, IakdOptions(), seed=0)
    initialise_from_teacher(student, teacher)
    hybrid.train()
    logits = hybrid(images(), [True, False, True])
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert student.blocks[0].conv1.weight.grad is not None and student.blocks[1].conv1.weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())
    assert student.blocks[0].conv1.quantiser.range.isfinite().all()
    assert not student.blocks[1].conv1.quantiser.range.isfinite().any(), "a block that did not run has seen nothing"


def switchable(arch: str = "resnet8", seed: int = 0) -> models.Network:
    return network([2, 8, 4], arch, seed)


def trained(arch: str = "resnet8") -> models.Network:
    """Every bit-width has seen other images, so that their statistics and ranges differ."""
    net = switchable(arch)
    for position, bits in enumerate((8, 4, 2)):
        with at_bits(net, bits):
            net.train()(images() * (1 + position))
    with torch.no_grad():
        for position, parameter in enumerate(net.parameters()):
            parameter.mul_(1 + 0.01 * (position % 7))
    return net.eval()


def test_a_switchable_network_begins_as_that_of_its_highest_bit_width() -> None:
    net, single = switchable(), network(8)
    assert bit_widths(net) == [8, 4, 2] and bit_widths(single) == []
    state, names = net.state_dict(), list(single.state_dict())
    assert [name for name in state if "lower_bits" not in name] == names
    assert all(torch.equal(state[name], tensor) for name, tensor in single.state_dict().items())
    assert torch.equal(net(images()), single(images()))


def test_each_bit_width_has_its_own_ranges_statistics_and_affine_maps_and_one_set_of_weights() -> None:
    net = switchable().train()
    for bits in (8, 4, 2):
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        net.zero_grad()
        with at_bits(net, bits):
            net(images()).square().sum().backward()
        moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
        part = f"lower_bits.{bits}." if bits < 8 else ""
        norms = {name for name, layer in net.named_modules() if isinstance(layer, SwitchableBatchNorm2d)}
        own = {f"{name}.{part}{what}" for name in norms for what in ("running_mean", "running_var")}
        own |= {f"{name}.{part}num_batches_tracked" for name in norms}
        ranges = {name.removesuffix("range") for name in before if name.endswith("quantiser.range")}
        assert moved == own | {f"{name}{part}range" for name in ranges}
        learned = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
        weights = {name for name, _ in network(8).named_parameters() if name.rpartition(".")[0] not in norms}
        assert learned == weights | {f"{name}.{part}{what}" for name in norms for what in ("weight", "bias")}


@pytest.mark.parametrize("arch", ["resnet8", "wrn_10_1", "MobileNetV2", "vgg8"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_one_file_holds_every_bit_width_and_each_can_be_taken_out(arch: str, bits: int) -> None:
    net = trained(arch)
    with at_bits(net, bits):
        expected = net(images())
    loaded = switchable(arch, seed=9)
    models.load_weights(loaded, models.save_weights(net), "here")
    set_bits(loaded, bits)
    assert torch.equal(loaded.eval()(images()), expected)
    keep_bits(loaded, bits)
    assert torch.equal(loaded(images()), expected)
    alone = network(bits, arch, seed=3)
    models.load_weights(alone, models.save_weights(loaded), "the bit-width alone")
    assert torch.equal(alone.eval()(images()), expected)
    assert [type(layer) for layer in loaded.modules()] == [type(layer) for layer in alone.modules()]


def test_bit_widths_differ_and_the_switch_goes_back() -> None:
    net = trained()
    outputs = {bits: net(images()) for bits in each_bits(net)}
    assert list(outputs) == [8, 4, 2] and not torch.equal(outputs[8], outputs[4])
    assert torch.equal(net(images()), outputs[8])
    with pytest.raises(RuntimeError, match="inside"), at_bits(net, 2):
        raise RuntimeError("inside")
    assert torch.equal(net(images()), outputs[8])
    assert list(each_bits(network(4))) == [None]
    with pytest.raises(ValueError, match=r"\[8, 4, 2\] bits, and cannot be switched to 3"):
        set_bits(net, 3)
    with pytest.raises(ValueError, match="one number of bits"):
        set_bits(network(4), 4)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_cost_at_each_bit_width_is_that_of_a_network_of_this_bit_width(bits: int) -> None:
    net, alone, image = switchable(), network(bits), (3, 16, 16)
    with at_bits(net, bits):
        assert model_cost(net, image) == model_cost(alone, image)
        assert weight_bytes(net) == weight_bytes(alone)
        assert bit_operations(net, image) == bit_operations(alone, image)
    macs, first, last = model_cost(alone, image)["macs"], 16 * 16 * 16 * 27, 64 * 10
    assert bit_operations(alone, image) == (macs - first - last) * bits**2 + (first + last) * 64


def test_a_start_from_the_teacher_is_the_same_at_all_bit_widths() -> None:
    teacher = network(None, seed=7)
    teacher(images())
    student = switchable()
    initialise_from_teacher(student, teacher)
    state = student.state_dict()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(state[name], tensor)
        layer, _, what = name.rpartition(".")
        for bits in (4, 2):
            assert torch.equal(state.get(f"{layer}.lower_bits.{bits}.{what}", tensor), tensor)
    assert f"{layer}.lower_bits.2" not in state and "stem.1.lower_bits.2.running_var" in state


def test_batchnorm_layers_that_cannot_be_switched_are_refused() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(UserError, match="BatchNorm1d; set a single number of bits"):
        quantise(layers, [2, 4])
