"""Layers that losses bring along: how their weights are drawn, what they are, and in which mode they work."""

import pytest
import torch
from digit_training import loss_between
from torch import nn

from iakd.distillation.losses.maps import Regressor
from iakd.distillation.losses.simkd import ReusedHead


@pytest.mark.parametrize("name", ["ab", "cc", "fitnet", "ft", "ot", "reviewkd", "vid"])
def test_weights_are_drawn_from_the_generator_alone(name: str) -> None:
    part, _ = loss_between(name, "resnet8x4", "wrn_16_2")

    def drawn(seed: int, others: int) -> list[torch.Tensor]:
        torch.manual_seed(others)
        part.initialise(torch.Generator().manual_seed(seed))
        return [parameter.detach().clone() for parameter in part.parameters()]

    one, again, other = drawn(0, others=1), drawn(0, others=2), drawn(1, others=1)
    assert one and all(map(torch.equal, one, again)) and not all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [
        ((3, 8, 6), (5, 4, 3), (4, 3)),
        ((3, 4, 3), (5, 8, 6), (8, 6)),
        ((3, 8, 8), (5, 4, 8), (8, 8)),
        ((3, 4, 4), (5, 8, 4), (4, 4)),
    ],
)
def test_a_regressor_halves_or_doubles_both_sides_or_none(
    ours: tuple[int, ...], theirs: tuple[int, ...], size: tuple[int, int]
) -> None:
    assert Regressor(ours, theirs, active=False)(torch.randn(2, *ours)).shape == (2, 5, *size)


def test_ot_projects_lengths_that_differ_without_a_bias() -> None:
    part, outputs = loss_between("ot", "resnet8x4", "wrn_16_2")
    assert isinstance(part.project, nn.Linear) and part.project.bias is None
    (ours,), (theirs,) = outputs.student.blocks.values(), outputs.teacher.blocks.values()
    assert part.project.weight.shape == (theirs.shape[1], ours.shape[1]) == (128, 256)
    same, _ = loss_between("ot", "resnet8", "resnet14")
    assert isinstance(same.project, nn.Identity)


def test_simkd_s_classifier_never_trains_and_its_projector_does() -> None:
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 10))
    head = ReusedHead((4, 6, 6), (8, 3, 3), classifier, factor=2)
    assert head.size == (3, 3)
    assert [layer.out_channels for layer in head.projector if isinstance(layer, nn.Conv2d)] == [4, 4, 8]
    assert [layer.kernel_size for layer in head.projector if isinstance(layer, nn.Conv2d)] == [(1, 1), (3, 3), (1, 1)]
    for mode in (head.eval, head.train):
        mode()
        assert {layer.training for layer in head.projector} == {mode == head.train}
        assert not any(layer.training for layer in head.classifier)
    assert not any(parameter.requires_grad for parameter in head.classifier.parameters())
    assert classifier[3].weight.requires_grad, "it is a copy that is frozen"
    assert head(torch.randn(2, 4, 6, 6)).shape == (2, 10)
