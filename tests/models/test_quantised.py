"""Networks of few bits: against torch's own fake quantisation, and as students."""

import math

import pytest
import torch
from torch import nn

from iakd import config, models
from iakd.config import IakdOptions
from iakd.interactive.hybrid import Hybrid
from iakd.models.network import initialise
from iakd.models.pairing import initialise_from_teacher
from iakd.models.quantisation import QuantisedConv2d, Quantiser, nearest, weight_bytes


def network(bits: int | None, arch: str = "resnet8", seed: int = 0) -> models.Network:
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
