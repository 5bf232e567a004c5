"""RCN: two branches in training, one plain network afterwards that computes the same."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, network
from pydantic import ValidationError
from torch import nn

from iakd import config, models
from iakd.config import Method, Params
from iakd.errors import UserError
from iakd.models.branches import (
    BranchedBatchNorm2d,
    BranchedConv2d,
    add_branch,
    merge_branches,
    normalised_convolutions,
)
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
ARCHITECTURES = {  # convolutions with a BatchNorm of their own, of all
    "resnet8": (9, 9),
    "resnet8x4": (10, 10),
    "wrn_10_2": (3, 10),  # pre-activation: the others lead to a sum, or to the next block
    "vgg8": (5, 5),
    "MobileNetV2": (53, 53),
    "ShuffleV1": (49, 49),
    "ShuffleV2": (56, 56),
    "ResNet50": (53, 53),
    "torchvision/mobilenet_v2": (52, 52),
}


def branches(net: models.Network, image: tuple[int, ...]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    layers = normalised_convolutions(net, image)
    for number, (conv, norm) in enumerate(layers):
        second = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None,
        )  # fmt: skip
        add_branch((conv, norm), (second, nn.BatchNorm2d(norm.num_features, eps=1e-5 * (1 + number % 3))))
    return layers


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_merged_network_is_plain_and_computes_the_same(arch: str) -> None:
    """In float64, at the accuracy of rounding, with statistics and affine maps unlike those of a new network."""
    torch.manual_seed(0)
    net = network(config.Network(arch=arch), 1)
    plain = {name: value.shape for name, value in net.state_dict().items()}
    types = [type(layer) for layer in net.modules()]
    images = torch.randn(6, 1, 32, 32)
    layers = branches(net, (1, 32, 32))
    assert (len(layers), sum(isinstance(layer, nn.Conv2d) for layer in net.modules()) - len(layers)) == ARCHITECTURES[
        arch
    ]
    net.train()
    for _, norm in layers:
        assert isinstance(norm, BranchedBatchNorm2d)
        norm.share = torch.randint(0, 3, (norm.num_features,)) / 2
        for each in (norm, norm.second):
            nn.init.normal_(each.weight, 1, 0.3)
            nn.init.normal_(each.bias, 0, 0.3)
    for _ in range(2):
        net(images)
    net.double().eval()
    expected = net(images.double())
    for both in layers:
        merge_branches(both)
    assert [type(layer) for layer in net.modules()] == types
    assert {name: value.shape for name, value in net.state_dict().items()} == plain
    assert not any("second" in vars(layer) or "share" in vars(layer) for layer in net.modules())
    assert torch.allclose(net(images.double()), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(network(config.Network(arch=arch), 1).double().eval()(images.double()), expected)


def test_the_merged_layers_are_their_formula() -> None:
    """With a bias, and the mean of the new convolution's outputs as the running mean, by hand in numpy."""
    torch.manual_seed(1)
    conv, norm, conv2, norm2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1)
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    for layer in (conv, norm, conv2, norm2):
        layer.double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    for each_conv, each_norm in ((conv, norm), (conv2, norm2)):
        each_norm.momentum = 1.0
        each_norm(each_conv(x))
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    expected = np.zeros((len(pixels), 4))
    for each_conv, each_norm in ((conv, norm), (conv2, norm2)):
        made = pixels @ each_conv.weight.detach().numpy()[:, :, 0, 0].T + each_conv.bias.detach().numpy()
        mean, variance = made.mean(0), made.var(0, ddof=1)
        scale = each_norm.weight.detach().numpy() / np.sqrt(variance + each_norm.eps)
        expected += 0.5 * (scale * (made - mean) + each_norm.bias.detach().numpy())
    add_branch((conv, norm), (conv2, norm2))
    conv.eval(), norm.eval()
    branched = norm(conv(x)).detach().permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    merge_branches((conv, norm))
    merged = norm(conv(x)).detach().permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    assert branched == pytest.approx(expected, abs=1e-12) and merged == pytest.approx(expected, abs=1e-12)
    assert norm.running_mean is not None
    assert norm.running_mean.numpy() == pytest.approx(conv(x).mean((0, 2, 3)).detach().numpy(), abs=1e-12)


def test_channels_are_the_first_branch_s_the_second_s_or_the_mean() -> None:
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    second = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    first_alone, second_alone = (norm(conv(x)) for conv, norm in (layers, second))
    add_branch(layers, second)
    conv, norm = layers
    assert isinstance(norm, BranchedBatchNorm2d)
    norm.share = torch.tensor([1.0, 0.0, 0.5])
    mean = (first_alone + second_alone) / 2
    expected = torch.stack([first_alone[:, 0], second_alone[:, 1], mean[:, 2]], dim=1)
    assert torch.allclose(norm(conv(x)), expected, atol=1e-6)
    norm.share = None
    assert torch.allclose(norm(conv(x)), mean, atol=1e-6)


def drawn(training: Trainer, step: int) -> list[torch.Tensor | None]:
    loss = training.objective.losses["rcn"]
    loss.begin_step(step)
    norms = [layer for layer in training.objective.student.modules() if isinstance(layer, BranchedBatchNorm2d)]
    return [None if norm.share is None else norm.share.clone() for norm in norms]


def test_draws_depend_on_seed_and_step_and_end_with_the_mean(make_training: Make) -> None:
    training = make_training("kd+rcn", options={"rcn": {"mean_only": 0.2}})
    total = training.timeline.total
    one, again, next_step = (torch.cat(drawn(training, step)) for step in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, next_step)
    many = torch.cat([share for step in range(round(0.8 * total)) for share in drawn(training, step)])
    shares = [(many == value).float().mean().item() for value in (0, 0.5, 1)]
    assert sum(shares) == pytest.approx(1) and shares == pytest.approx([1 / 3] * 3, abs=0.02)
    assert all(share is None for share in drawn(training, round(0.8 * total)))
    keys = [training.objective.graph_key(step) for step in (3, 4, total - 1)]
    assert keys[0] == keys[1] != keys[2], "what differs between drawn steps is in memory that recorded steps read"


def test_the_second_branch_is_the_teacher_s_and_stays_so(make_training: Make) -> None:
    """resnet14 teaches resnet8 of the same width: every layer of the student has a counterpart."""
    training = make_training("rcn")
    student, teacher = training.objective.student, training.objective.teacher
    block, theirs = student.blocks[1], teacher.blocks[2]
    assert isinstance(block.conv1, BranchedConv2d) and isinstance(student.stem[0], BranchedConv2d)
    seconds = {"stem.0": teacher.stem[0], "stem.1": teacher.stem[1]}
    seconds |= {f"stages.1.0.{name}": theirs.get_submodule(name) for name in ("conv1", "bn1", "conv2", "bn2")}
    before = {name: layer.state_dict() for name, layer in seconds.items()}
    training.objective.train()
    for _ in range(2):
        training.train_step(fixed_batch(training))
    for name, state in before.items():
        second = student.get_submodule(f"{name}.second")
        assert all(torch.equal(value, state[key]) for key, value in second.state_dict().items()), name
        assert not any(p.requires_grad for p in second.parameters())
    assert not torch.equal(block.bn1.running_mean, block.bn1.second.running_mean)
    assert training.objective.record()["rcn"] == {"branches": 9, "from_teacher": 9}


def test_unless_frozen_it_only_starts_as_the_teacher_s(make_training: Make) -> None:
    training = make_training("rcn", options={"rcn": {"freeze": False}})
    second, teacher = training.objective.student.stem[1].second, training.objective.teacher.stem[1]
    assert torch.equal(second.weight, teacher.weight)
    training.objective.train()
    training.train_step(fixed_batch(training))
    assert all(not torch.equal(value, teacher.state_dict()[name]) for name, value in second.state_dict().items())


def test_the_finished_student_computes_what_was_validated(make_training: Make) -> None:
    training = make_training("kd+rcn", options={"rcn": {"mean_only": 0.0}}, ema=0.5, epochs=2)
    images = fixed_batch(training).images
    seen: list[torch.Tensor] = []
    training.on_validation = lambda epoch, row: seen.append(training.average.module.eval()(images))
    history, metrics = training.fit()
    student = training.objective.student.eval()
    assert torch.allclose(student(images), seen[-1], rtol=1e-4, atol=1e-4)
    assert metrics["val_nll"] == pytest.approx(history[-1]["val_nll"], rel=1e-4)
    assert metrics["rcn"]["branches"] == 9
    single = models.build(config.Network(arch="resnet8", width=8), 1, 10)
    models.load_weights(single, models.save_weights(student), "here")
    assert torch.equal(single.eval()(images), student(images))


def test_where_the_teacher_does_not_fit_the_branch_is_random_and_trained(make_training: Make) -> None:
    """Of a network of another width nothing fits, and of one twice as wide the stem alone."""
    with pytest.raises(UserError, match="rcn needs a teacher with convolutions of the student's shapes"):
        make_training("rcn", student=config.Network(arch="resnet8", width=6))
    training = make_training("rcn", student=config.Network(arch="resnet8x4", width=16), epochs=1)
    assert training.objective.record()["rcn"] == {"branches": 10, "from_teacher": 1}
    seconds = [p for name, p in training.objective.student.named_parameters() if ".second." in name]
    trained = [p for p in seconds if p.requires_grad]
    before = [p.clone() for p in trained]
    assert 0 < len(trained) < len(seconds)
    training.fit()
    assert not any(torch.equal(p, b) for p, b in zip(trained, before, strict=True))
    assert not any("second" in name for name in training.objective.student.state_dict())


def test_refusals_are_one_line() -> None:
    with pytest.raises(ValidationError, match="rcn cannot be added to iakd: it swaps channels within"):
        Method(method="iakd+rcn")
    settings = {"teachers": [{"arch": "resnet14"}], "methods": {"rcn": {}}}
    for bits in (4, [2, 4]):
        with pytest.raises(ValidationError, match=r"rcn cannot train a student of bits .*: it merges weights of full"):
            Params.model_validate({**settings, "students": [{"arch": "resnet8", "bits": bits}]})
