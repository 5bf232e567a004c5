"""Branches of the hybrid network: adapters of maps and of tokens, changes of size, and mixtures of both networks."""

import pytest
import torch
from small import network
from torch import Tensor, nn

from iakd import models
from iakd.config import IakdOptions
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid, TeacherBranch, mix_branches
from iakd.models.network import Block
from iakd.models.pairing import copy_weights, initialise_from_teacher, pair_blocks
from iakd.models.quantisation import QUANTISER


class Tokens(Block):
    """(B, N, C) → (B, N, C′)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens).tanh()


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens.mean(1))


def transformer(depth: int, width: int) -> models.Network:
    return models.Network(Patches(width), [[Tokens(width, width) for _ in range(depth)]], Head(width), size=8)


IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_tokens_pass_linear_adapters() -> None:
    student, teacher = transformer(2, 6), transformer(4, 8)
    hybrid = Hybrid(student, teacher, IakdOptions(), seed=0)
    tokens = student.stem(IMAGES)
    for position, branch in enumerate(hybrid.branches):
        assert [type(layer) for layer in (*branch.enter, *branch.leave)] == [nn.Linear, nn.LayerNorm] * 2
        assert branch.enter[0].bias is None and branch.enter[0].weight.shape == (8, 6)
        assert branch.leave[0].bias is None and branch.leave[0].weight.shape == (6, 8)
        entered = branch.enter(tokens)
        for block in teacher.blocks[2 * position : 2 * position + 2]:
            entered = block(entered)
        tokens = branch.leave(entered)
    assert torch.allclose(hybrid(IMAGES, [False, False]), student.head(tokens), atol=1e-6)


@pytest.mark.parametrize("kept", [torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.5]), torch.tensor([True, False, True])])
def test_tokens_can_be_mixed_by_channel_and_by_image(kept: Tensor) -> None:
    student, teacher = transformer(2, 6), transformer(2, 6)
    hybrid = Hybrid(student, teacher, IakdOptions(), seed=0)
    tokens = student.stem(IMAGES)
    own, theirs = student.blocks[0](tokens), teacher.blocks[0](tokens)
    weights = kept if kept.is_floating_point() else kept.float()[:, None, None]
    expected = student.head(student.blocks[1](weights * own + (1 - weights) * theirs))
    assert torch.allclose(hybrid(IMAGES, [kept, True]), expected, atol=1e-6)


def test_maps_are_mixed_by_channel() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0.0, 0.5])
    mixed = mix_branches([nn.ReLU(), nn.Tanh()], torch.exp, weights, maps)
    share = weights.view(1, 3, 1, 1)
    assert torch.allclose(mixed, share * maps.relu().tanh() + (1 - share) * maps.exp(), atol=1e-6)


def test_convolutional_adapters_are_there_where_widths_differ() -> None:
    teacher, student = network("resnet14", seed=1, width=8), network("resnet8", seed=2, width=4)
    (first, *_) = pair_blocks(teacher, student, (1, 8, 8))
    branch = TeacherBranch(first, nn.Sequential(*first.teacher.blocks))
    assert [type(layer) for layer in (*branch.enter, *branch.leave)] == [nn.Conv2d, nn.BatchNorm2d] * 2
    shapes = [(c.in_channels, c.out_channels, c.kernel_size, c.bias) for c in (branch.enter[0], branch.leave[0])]
    assert shapes == [(4, 8, (1, 1), None), (8, 4, (1, 1), None)]
    alike = pair_blocks(network("resnet14", seed=1), network("resnet8", seed=2), (1, 8, 8))[0]
    plain = TeacherBranch(alike, nn.Sequential(*alike.teacher.blocks))
    assert isinstance(plain.enter, nn.Identity) and isinstance(plain.leave, nn.Identity)


def test_adapters_are_drawn_from_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        teacher, student = network("resnet14", seed=1, width=8), network("resnet8", seed=2, width=4)
        return list(Hybrid(student, teacher, IakdOptions(), seed).branches.state_dict().values())

    one, again, other = weights(0), weights(0), weights(1)
    assert len(one) > 0 and all(map(torch.equal, one, again)) and not all(map(torch.equal, one, other))


class Halving(Block):
    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, :, ::2, ::2]


class Keeping(Block):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + 1


def pyramid(blocks: list[Block]) -> models.Network:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10))
    stem = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(stem.weight)
    return models.Network(stem, [[block] for block in blocks], head, size=8)


def test_the_teachers_maps_are_brought_to_the_students_sizes() -> None:
    """Student 8 → 4 → 2, teacher 8 → 8 → 4: its first output is averaged, its second input repeated and averaged."""
    student, teacher = pyramid([Halving(1, 1), Halving(1, 1)]), pyramid([Keeping(1, 1), Halving(1, 1)])
    hybrid = Hybrid(student, teacher, IakdOptions(), seed=0)
    pooled = nn.functional.avg_pool2d
    first = pooled(IMAGES + 1, 2)
    repeated = first.repeat_interleave(2, 2).repeat_interleave(2, 3)
    second = pooled(repeated[:, :, ::2, ::2], 2)
    assert torch.allclose(hybrid(IMAGES, [False, False]), student.head(second), atol=1e-6)
    assert torch.allclose(hybrid(IMAGES, [False, True]), student.head(first[:, :, ::2, ::2]), atol=1e-6)


def test_sizes_are_those_of_the_images_at_hand() -> None:
    student, teacher = pyramid([Halving(1, 1), Halving(1, 1)]), pyramid([Keeping(1, 1), Halving(1, 1)])
    hybrid = Hybrid(student, teacher, IakdOptions(), seed=0)
    for height, width in ((8, 8), (16, 8), (12, 20), (8, 8)):
        images = torch.ones(2, 1, height, width)
        slots = []
        handle = student.head.register_forward_pre_hook(lambda module, arguments, seen=slots: seen.append(arguments[0]))
        hybrid(images, [False, False])
        handle.remove()
        assert slots[0].shape == (2, 1, height // 4, width // 4)


def test_weights_are_copied_and_others_refused() -> None:
    source, target = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.constant_(source.weight, 5.0)
    source.running_mean.fill_(2.0)
    copy_weights(source, target, "layer")
    assert target.weight.tolist() == [5.0] * 3 and target.running_mean.tolist() == [2.0] * 3
    for other in (nn.BatchNorm2d(4), nn.Linear(3, 3)):
        with pytest.raises(UserError, match="the teacher's layer does not fit"):
            copy_weights(source, other, "layer")


def test_quantisation_ranges_of_the_target_are_kept() -> None:
    """They are the student's own; the teacher has none, or others that are copied with its weights."""
    module, buffer = QUANTISER.split(".")
    source, target, both = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    for layer, value in ((target, 3.0), (both, 5.0)):
        layer.add_module(module, nn.Module())
        layer.get_submodule(module).register_buffer(buffer, torch.tensor(value))
    copy_weights(source, target, "layer")
    assert torch.equal(target.weight, source.weight)
    assert target.state_dict()[QUANTISER].item() == 3.0
    copy_weights(both, target, "layer")
    assert target.state_dict()[QUANTISER].item() == 5.0


def test_a_student_takes_the_teachers_stem_head_and_first_block_of_each_group() -> None:
    teacher, student = network("resnet20", seed=1), network("resnet8", seed=2)
    before = models.save_weights(teacher)
    initialise_from_teacher(student, teacher)
    assert models.save_weights(teacher) == before
    pairs = [(teacher.stem, student.stem), (teacher.head, student.head)]
    for theirs, ours in (*pairs, *zip(teacher.blocks[::3], student.blocks, strict=True)):
        given, taken = theirs.state_dict(), ours.state_dict()
        assert list(given) == list(taken) and all(torch.equal(given[name], taken[name]) for name in given)
