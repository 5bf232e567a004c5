"""Exported networks compute what the networks compute: every family, full precision and few bits."""

import io
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch

from iakd import config, models
from iakd.config import Method
from iakd.distillation.registry import deploy
from iakd.errors import RunFailed
from iakd.export import convert
from iakd.export.convert import Agreement, Deployed
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.models.quantisation import at_bits, each_bits

# The smallest of each family, with the images (height and width) they are tried on.
FAMILIES = {
    "resnet8": 16,
    "resnet8x4": 16,
    "ResNet18": 16,
    "wrn_10_1": 16,
    "vgg8": 16,
    "MobileNetV2": 16,
    "ShuffleV1": 32,
    "ShuffleV2": 32,
    "torchvision/resnet18": 32,
    "torchvision/mobilenet_v2": 32,
    "torchvision/mobilenet_v3_small": 32,
    "torchvision/regnet_y_400mf": 32,
}
LARGE = {
    "ResNet50": 16,
    "torchvision/resnext50_32x4d": 32,
    "torchvision/mobilenet_v3_large": 32,
    "torchvision/efficientnet_b0": 32,
    "torchvision/efficientnet_v2_s": 32,
    "torchvision/regnet_x_400mf": 32,
    "torchvision/convnext_tiny": 32,
    "torchvision/vit_b_32": 224,
}


@dataclass
class Data:
    """What `Deployed` asks of a data set."""

    mean: list[float] = field(default_factory=lambda: [0.4, 0.5, 0.6])
    std: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.25])


def images(n: int, side: int, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(n).integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    return pixels.astype(np.float32) / np.float32(255)


def network(arch: str, side: int, classes: int = 5, **settings: object) -> models.Network:
    """Random weights, and statistics and ranges as a training leaves them."""
    built = models.build(config.Network.model_validate({"arch": arch, **settings}), 3, classes)
    initialise(built, torch.Generator().manual_seed(0))
    built.train()
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(2):
            for _ in each_bits(built):
                built(torch.randn(4, 3, side, side))
    return built.eval()


def deployed(net: models.Network) -> Deployed:
    return Deployed(net, Data()).eval()  # type: ignore[arg-type]


def onnx_agrees(model: Deployed, side: int) -> onnx.ModelProto:
    """Compare the graph with the model, on other batch sizes than the exporter saw, and return it."""
    content = convert.to_onnx(model, (3, side, side), {"classes": ["a", "b"]})
    for n in (1, 5):
        batch = images(n, side)
        expected = convert.torch_logits(model, iter([batch]))
        Agreement.of(expected, convert.onnx_logits(content, iter([batch]), 1)).check("model.onnx")
    return onnx.load_from_string(content)


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_as_onnx(arch: str) -> None:
    side = FAMILIES[arch]
    graph = onnx_agrees(deployed(network(arch, side)), side)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]


@pytest.mark.slow
@pytest.mark.parametrize("arch", LARGE)
def test_every_large_family_as_onnx(arch: str) -> None:
    onnx_agrees(deployed(network(arch, LARGE[arch])), LARGE[arch])


@pytest.mark.parametrize("arch", ["resnet8", "ShuffleV2"])
def test_as_a_program_of_torch_export(arch: str) -> None:
    """Bit for bit, since it runs the same kernels."""
    side = FAMILIES[arch]
    model = deployed(network(arch, side))
    content = convert.to_pt2(model, (3, side, side))
    for n in (1, 5):
        batch = images(n, side)
        logits = convert.pt2_logits(content, iter([batch]))
        assert np.abs(logits - convert.torch_logits(model, iter([batch]))).max() <= 1e-6


def test_the_student_of_simkd_as_onnx() -> None:
    """Its head is the teacher's behind a projector."""
    student, teacher = network("resnet8", 16, width=4), network("resnet8", 16, width=8)
    deploy(student, teacher, Method(method="simkd"), (3, 16, 16))
    onnx_agrees(deployed(student.eval()), 16)


def test_the_input_is_normalised_as_in_the_pipeline() -> None:
    """Also by two normalisations in a row, where the network was trained with another one than the data set's."""
    data, own = Data(), config.Normalisation(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    net = network("resnet8", 16)
    plain = images(3, 16)
    expected = net(
        torch.from_numpy((plain - np.array(own.mean)[:, None, None]) / np.array(own.std)[:, None, None]).float()
    )
    adapt_input(net, own, data.mean, data.std)
    content = convert.to_onnx(deployed(net), (3, 16, 16), {})
    assert np.abs(convert.onnx_logits(content, iter([plain]), 1) - expected.detach().numpy()).max() < 1e-5


def test_the_same_network_gives_the_same_bytes() -> None:
    model = deployed(network("resnet8", 16, width=4))
    assert convert.to_onnx(model, (3, 16, 16), {"a": [1]}) == convert.to_onnx(model, (3, 16, 16), {"a": [1]})
    assert convert.to_pt2(model, (3, 16, 16)) == convert.to_pt2(model, (3, 16, 16))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_bits_leave_as_integers_that_give_the_simulated_outputs(bits: int) -> None:
    model = deployed(network("resnet8", 16, width=4, bits=bits))
    content = convert.to_onnx(model, (3, 16, 16), {})
    batch = images(60, 16)
    simulated = convert.torch_logits(model, iter([batch]))
    noise = convert.rounding_noise(model, simulated, iter([batch]))
    agreement = Agreement.of(simulated, convert.onnx_logits(content, iter([batch]), 1))
    agreement.check("model.onnx", noise)
    graph = onnx.load_from_string(content).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    integers = [array for array in weights.values() if array.dtype == np.int8 and array.ndim > 1]
    assert len(integers) == len(convert.quantised_layers(model.network)) > 5
    top = 2 ** (bits - 1) - 1
    assert all(np.abs(array).max() == top for array in integers[1:-1]), "the first and the last layer have eight bits"
    assert not any(array.dtype == np.float32 and array.ndim == 4 for array in weights.values())


def test_a_wrong_range_is_noticed_in_a_network_of_few_bits() -> None:
    """The allowance for rounding hides no mistake: here one layer's range is 5 % too wide."""
    model = deployed(network("resnet8", 16, width=4, bits=8))
    batch = images(60, 16)
    simulated = convert.torch_logits(model, iter([batch]))
    noise = convert.rounding_noise(model, simulated, iter([batch]))
    convert.quantised_layers(model.network)[3].quantiser.range *= 1.05
    wrong = convert.onnx_logits(convert.to_onnx(model, (3, 16, 16), {}), iter([batch]), 1)
    with pytest.raises(RunFailed, match=r"^model.onnx differs from the model"):
        Agreement.of(simulated, wrong).check("model.onnx", noise)


def test_each_of_several_bit_widths() -> None:
    model = deployed(network("resnet8", 16, width=4, bits=[2, 8]))
    batch = images(60, 16)
    found = {}
    for bits in (8, 2):
        with at_bits(model.network, bits):
            simulated = convert.torch_logits(model, iter([batch]))
            noise = convert.rounding_noise(model, simulated, iter([batch]))
            found[bits] = convert.onnx_logits(convert.to_onnx(model, (3, 16, 16), {}), iter([batch]), 1)
            Agreement.of(simulated, found[bits]).check("model.onnx", noise)
    assert np.abs(found[8] - found[2]).max() > 0.01


def test_another_model_is_refused() -> None:
    model = deployed(network("resnet8", 16, width=4))
    graph = onnx.load_from_string(convert.to_onnx(model, (3, 16, 16), {}))
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 3e-3, bias.name))
    batch = images(4, 16)
    expected = convert.torch_logits(model, iter([batch]))
    with pytest.raises(RunFailed, match=r"model.onnx differs from .* by \d\.\de-0[34] \(1e-04 is allowed\)"):
        Agreement.of(expected, convert.onnx_logits(graph.SerializeToString(), iter([batch]), 1)).check("model.onnx")


def test_another_top_class_is_refused_unless_rounding_decides() -> None:
    same = np.float32([[1.0, 0.99995], [1.0, 1.0 - 2e-6], [0.0, 2.0]])
    other = np.float32([[0.99996, 1.0], [1.0, 1.0 + 1e-6], [0.0, 2.0]])
    agreement = Agreement.of(same, other)
    assert (agreement.n, agreement.top1) == (3, 2)
    with pytest.raises(RunFailed, match="the same class for 2 of 3"):
        agreement.check("model.pt2")
    Agreement.of(same[1:], other[1:]).check("model.pt2")


def test_outputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(RunFailed, match="by nan"):
        Agreement.of(np.float32([[1.0, 0.0]]), np.float32([[np.nan, 0.0]])).check("model.onnx")


def test_what_an_exporter_does_not_know_is_told_in_one_line() -> None:
    class Odd(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(features)

    net = network("resnet8", 16, width=4)
    net.input = Odd()
    with pytest.raises(RunFailed, match=r"^torch cannot turn this network into ONNX \(.*bessel.*leave its pair out"):
        convert.to_onnx(deployed(net), (3, 16, 16), {})


def test_files_tell_nothing_of_where_they_were_made() -> None:
    model = deployed(network("resnet8", 16, width=4, bits=4))
    for content in (convert.to_onnx(model, (3, 16, 16), {}), convert.to_pt2(model, (3, 16, 16))):
        assert b"iakd/" not in content and b".py" not in content


def test_pt2_is_read_without_this_project() -> None:
    model = deployed(network("resnet8", 16, width=4))
    program = torch.export.load(io.BytesIO(convert.to_pt2(model, (3, 16, 16))))
    assert program.module()(torch.zeros(7, 3, 16, 16)).shape == (7, 5)
